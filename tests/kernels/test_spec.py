"""Kernelspecs: written, listed, removed, and opened by what people open notebooks with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from nbpar.__main__ import main
from tests.faults.common import family, gone
from tests.kernels.common import interrupted
from tests.notebook import Notebook

Install = Callable[..., Path]
CELLS = ("x = 20", "%%parallel\nimport torch.distributed as dist\nx += dist.get_world_size()\nprint(x)")


def test_what_is_written(install: Install) -> None:
    path = install(
        "-n", "4", "--env", "A=b", "--env", "C=d=e", "--mpiexec", "/opt/mpi/mpiexec", "--mpi-args=-genv X 1", name="four"
    )
    written = json.loads(path.read_text())
    assert written["display_name"] == "Python 3 (4 MPI ranks)" and written["interrupt_mode"] == "message"
    assert written["env"] == {"A": "b", "C": "d=e"} and written["language"] == "python"
    assert "kernel_provisioner" not in written["metadata"]
    assert written["argv"] == [
        sys.executable, "-m", "nbpar.kernel", "-f", "{connection_file}",
        "-n", "4", "--mpiexec=/opt/mpi/mpiexec", "--mpi-args=-genv X 1",
    ]  # fmt: skip
    assert (path.parent / "logo-64x64.png").exists()


def test_listed_and_removed(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    path = install("-n", "3", name="three")
    install("--display-name", "Mine", name="mine")
    capsys.readouterr()
    main(["kernel", "list"])
    three, mine = f"three  Python 3 (3 MPI ranks)  {path.parent}", f"mine   Mine  {path.parent.parent / 'mine'}"
    assert {three, mine} <= set(capsys.readouterr().out.splitlines())
    assert main(["kernel", "remove", "three"]) == 0
    assert not path.parent.exists()
    capsys.readouterr()
    main(["kernel", "list"])
    assert "Python 3 (3 MPI ranks)" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["remove", "thre"], "no kernel 'thre'. Did you mean 'three'?"),
        (["remove", "python3"], "not one of nbpar's. Type `jupyter kernelspec remove python3`"),
        (["install", "--name", "a b"], "named by letters"),
        (["install", "--prefix", "/proc/nowhere"], "cannot be written"),
    ],
)
def test_what_cannot_be(words: list[str], says: str, install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(name="three")
    assert main(["kernel", *words]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-n", "0"], ["-n", "513"], ["--env", "A"], ["--user", "--sys-prefix"], ["--mpi"]])
def test_wrong_options_end_with_status_2(words: list[str], place: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["kernel", "install", *words])
    assert ended.value.code == 2


def test_ranks_are_ready_interruptible_and_end_with_the_kernel(install: Install, tmp_path: Path) -> None:
    install("-n", "2", "--env", "COLOUR=blue", name="two")
    with Notebook(kernel="two") as notebook:
        pids: list[int] = notebook.value("__import__('nbpar').world().pids")  # waits, starts nothing
        assert len(pids) == 2
        notebook.run(CELLS[0])
        assert notebook.run(CELLS[1]).said == {"22"}
        assert notebook.run("%%parallel\nimport os\nprint(os.getpid(), os.environ['COLOUR'])").said == {f"{p} blue" for p in pids}
        for _ in range(2):
            assert interrupted(notebook, tmp_path / "asleep") == "KeyboardInterrupt"
        assert notebook.value("__import__('nbpar').world().pids") == pids
        before = family(pids)
        notebook.manager.restart_kernel()
        notebook.client.wait_for_ready(timeout=60)
        assert gone(before, 5)
        assert notebook.run(CELLS[0] + "\n%parallel status").stdout.startswith("nbpar: 2 ranks")
        after = family(notebook.value("__import__('nbpar').world().pids"))
    assert gone(after, 5)


def test_a_kernel_whose_ranks_do_not_start_lives_and_says_why(install: Install) -> None:
    install("-n", "2", "--mpiexec", "/nowhere/mpiexec", name="broken")
    with Notebook(kernel="broken") as notebook:
        assert notebook.run("x = 1; print(x)").lines == ["1"]
        for _ in range(2):
            cell = notebook.run("%%parallel\nprint(x)", fails=True)
            assert cell.error == "LaunchError" and "/nowhere/mpiexec" in cell.traceback
        notebook.run("%parallel start -n 1")
        assert notebook.run("%%parallel\nprint(x)").said == {"1"}


def notebook_of(*cells: str, kernel: str) -> nbformat.NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)


def test_nbclient_opens_it(install: Install) -> None:
    install("-n", "2", name="two")
    notebook = notebook_of(*CELLS, kernel="two")
    NotebookClient(notebook, timeout=60, kernel_name="two").execute()
    assert "22" in printed(notebook).splitlines()


def test_papermill_opens_it(install: Install, tmp_path: Path) -> None:
    install("-n", "2", name="two")
    source = notebook_of(*CELLS, kernel="two")
    source.cells[0].metadata.tags = ["parameters"]
    nbformat.write(source, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", parameters={"x": 40}, progress_bar=False, cwd=tmp_path
    )
    assert "42" in printed(done)
