"""The demo notebook in a real kernel over two real ranks: the same result as one process, and the text that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from nbpar import demo
from tests.demos import compare
from tests.demos.place import Place

NOTEBOOK = nbformat.read(demo.NOTEBOOK, as_version=4)


def training_cells() -> list[str]:
    return [cell.source for cell in NOTEBOOK.cells if "training" in cell.metadata.get("tags", [])]


def test_one_cell_text_runs_three_ways() -> None:
    one, two, again = training_cells()
    assert two == again == "%%parallel data -n 2\n" + one


@pytest.mark.timeout(300)
def test_ranks_give_what_one_process_gives(place: Place) -> None:
    executed, printed = place.execute(demo.NOTEBOOK.name)
    table = re.findall(r"^(.+?)\s+(\d\.\d{6})\s+(\d+\.\d)%\s+[\d.]+\s+[\d.]+×\s+(\d\.\de[+-]\d+)$", printed, re.MULTILINE)
    assert [name for name, *_ in table] == ["one process", "2 ranks", "2 ranks, restarted"]
    losses, accuracies, differences = zip(*[row[1:] for row in table], strict=True)
    assert len(set(losses)) == len(set(accuracies)) == 1
    assert float(accuracies[0]) > 95
    assert differences[0] == "0.0e+00"
    assert max(float(difference) for difference in differences) <= 1e-12

    texts = [epochs(cell) for cell in executed.cells if "training" in cell.metadata.get("tags", [])]
    assert len(texts[0]) == 10, "ten epochs, a line each"
    assert texts[0] == texts[1] == texts[2], "equal lines of the ranks appear once, and are those of one process"
    compare.same(executed, NOTEBOOK)
    assert "2 ranks, restarted" in (place.home / f"{demo.NOTEBOOK.stem}.html").read_text(encoding="utf-8")


def test_a_failing_cell_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    assert demo.demo(path, tmp_path / "out") == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert (tmp_path / "out" / "failing.html").exists()


def epochs(cell: nbformat.NotebookNode) -> list[str]:
    """The lines that the training loop printed, in order."""
    text = "".join(output.get("text", "") for output in cell.outputs)
    return re.findall(r"^epoch .*$", text, re.MULTILINE)
