"""Each demo notebook, executed anew in a small place, says what it is kept with; it is kept whole, clean and readable as a page."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor

from nbpar import demo
from tests.demos import compare, kept
from tests.demos.place import Place

VIEW = '<script type="application/vnd.jupyter.widget-view+json">'  # a place that only scripts can fill
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in kept.notebooks()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", [one for one in NOTEBOOKS if one.values[0].name != demo.NOTEBOOK.name])  # that one: test_demo.py
def test_says_what_it_is_kept_with(path: Path, place: Place) -> None:
    executed, _ = place.execute(path.name)
    compare.same(executed, nbformat.read(path, 4))


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_is_kept_complete_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, from top to bottom"
    failed = [cell for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    assert all("raises-exception" in cell.metadata.get("tags", ()) for cell in failed)
    assert kept.clean(nbformat.read(path, 4)) == notebook
    text = path.read_text(encoding="utf-8")
    assert socket.gethostname() not in re.findall(r"[\w-]+", text)
    assert not re.search(r"/(home|root|tmp|usr|Users)/", text)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_page_of_it_shows_the_tables(path: Path) -> None:
    """nbconvert's page has every panel that a cell asked for as tables, and no widget in their place."""
    notebook = nbformat.read(path, 4)
    page = HTMLExporter().from_notebook_node(notebook)[0]
    asked = [cell for cell in notebook.cells if cell.cell_type == "code" and "--show" in cell.source]
    for cell in asked:
        tables = "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)
        panels = re.findall(r"<summary[^>]*>(.*?)</summary><table", tables)
        assert panels and all(panel in page for panel in panels)
    assert VIEW not in page


def test_nbconvert_executes_to_a_page_with_tables() -> None:
    """As `jupyter nbconvert --execute` does it, widgets' state and all."""
    cells = [
        "%load_ext nbpar",
        "%%parallel -n 2 --show output,aggregation\nimport torch.distributed as dist; dist.barrier(); print('here')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    ExecutePreprocessor(timeout=120).preprocess(notebook)
    page = HTMLExporter().from_notebook_node(notebook)[0]
    assert "How values came together" in page
    assert VIEW not in page


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_translations_differ_in_text_only(path: Path) -> None:
    english = nbformat.read(path, 4).cells
    for other in kept.translations(path):
        translated = nbformat.read(other, 4).cells
        assert len(english) == len(translated)
        for ours, theirs in zip(english, translated, strict=True):
            assert ours.cell_type == theirs.cell_type
            assert (ours == theirs) == (ours.cell_type == "code")
