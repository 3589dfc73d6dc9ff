"""Bad input: a clear error or the right result."""

from __future__ import annotations

import pytest

from tests.faults.common import works
from tests.notebook import Notebook

MODEL = """import torch
class Outputs(torch.nn.Module):
    def __init__(self, make):
        super().__init__()
        self.layer, self.make = torch.nn.Linear(3, 2), make
    def forward(self, x):
        return self.make(self.layer(x))
"""


def test_an_empty_cell(notebook: Notebook) -> None:
    assert notebook.run("%%parallel\n\n").status == "ok"
    assert notebook.run("%%parallel\n# only a comment").status == "ok"


def test_a_cell_of_ten_mebibytes(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel\ntext = '" + "x" * (10 << 20) + "'\nprint(len(text))")
    assert cell.said == {str(10 << 20)}


def test_an_exception_that_cannot_be_pickled(notebook: Notebook) -> None:
    code = "%%parallel\nclass Odd(Exception):\n    def __reduce__(self): raise TypeError('no')\nraise Odd('strange')"
    cell = notebook.run(code, fails=True)
    assert "strange" in cell.traceback and "line" in cell.traceback
    works(notebook)


def test_sys_exit_is_an_error_and_not_the_end(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel\nimport sys\nsys.exit(3)", fails=True)
    assert cell.status == "error" and "SystemExit" in cell.traceback
    works(notebook)


@pytest.mark.parametrize(
    "line", ["input('name? ')", "import getpass\ngetpass.getpass()", "breakpoint()", "import pdb; pdb.set_trace()"]
)
def test_what_waits_for_a_person_says_that_nobody_can_answer(notebook: Notebook, line: str) -> None:
    cell = notebook.run(f"%%parallel\n{line}", fails=True)
    assert (
        cell.error == "Unsupported" and "nobody can type into a rank" in cell.traceback and "without %%parallel" in cell.traceback
    )
    works(notebook)


@pytest.mark.parametrize("line", ["%%parallel data\nx = 1", "%parallel stop"])
def test_parallel_within_a_parallel_cell(notebook: Notebook, line: str) -> None:
    cell = notebook.run(f"%%parallel\n{line}", fails=True)
    assert cell.error == "Unsupported" and "on the ranks already" in cell.traceback
    works(notebook)


def test_exit_is_what_sys_exit_is(notebook: Notebook) -> None:
    assert notebook.run("%%parallel\nexit()", fails=True).error == "SystemExit"
    works(notebook)


def test_options_that_only_a_rank_reads_are_told_as_one_line(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel model --place enc\nx = 1", fails=True)
    assert cell.error == "OptionError" and len(cell.traceback.splitlines()) == 1 and "encoder=0" in cell.traceback


@pytest.mark.parametrize("option", ["data --batch images", "--keep images", "--out images"])
def test_names_that_are_nowhere_are_told(notebook: Notebook, option: str) -> None:
    notebook.run("image = 1")
    cell = notebook.run(f"%%parallel {option}\nx = 1", fails=True)
    assert cell.error == "OptionError" and len(cell.traceback.splitlines()) == 1 and "Did you mean 'image'?" in cell.traceback
    notebook.run(f"%%parallel {option}\nimages = 1")
    notebook.run("del images")


def test_a_size_that_cannot_be_leaves_the_ranks_as_they_are(notebook: Notebook) -> None:
    pids = notebook.value("nbpar.world().pids")
    for line in ("%%parallel -n 0\nx = 1", "%parallel start -n 0"):
        cell = notebook.run(line, fails=True)
        assert cell.error == "OptionError" and "replaced" not in cell.stdout
        assert notebook.value("nbpar.world().pids") == pids


def test_a_thread_stays_and_says_so_once(notebook: Notebook) -> None:
    code = "%%parallel\nimport threading\nthread = threading.Thread(target=print, args=('there',)); thread.start(); thread.join()"
    cell = notebook.run(code)
    assert cell.said == {"there"} and len(cell.notes) == 1 and "a thread belongs to its process" in cell.notes[0]
    cell = notebook.run("thread = threading.Thread(target=print)\nlock = threading.Lock()")
    cell = notebook.run("%%parallel\nkept = thread\nwith lock: print('locked')")
    assert cell.said == {"locked"} and len(cell.notes) == 1 and "a thread belongs to its process" in cell.notes[0]
    notebook.run("del thread, lock, kept")


def test_ipythons_names_for_results_are_said_not_to_travel(notebook: Notebook) -> None:
    notebook.run("41 + 1")
    cell = notebook.run("%%parallel\nprint(_ == 42)")
    assert "_ does not go to the ranks" in cell.notes[0]
    assert notebook.run("%%parallel\nfor _ in range(3): last = _\nprint(_)").notes == []


@pytest.mark.parametrize(
    "make",
    [
        "lambda y: {'logits': y, 'sum': y.sum()}",
        "lambda y: (y, [y * 2], None)",
        "lambda y: None",
        "lambda y: (row for row in y)",
        "lambda y: y * float('nan')",
        "lambda y: float(y.detach().sum())",
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_outputs_of_any_kind_and_batches_of_any_size(notebook: Notebook, make: str, rows: int) -> None:
    notebook.run(f"{MODEL}torch.manual_seed(0)\nmodel = Outputs({make})\nx = torch.randn({rows}, 3)")
    show = "out = model(x)\nout = list(out) if hasattr(out, '__next__') else out\nprint(out)"
    alone = notebook.run(show).lines
    cell = notebook.run(f"%%parallel data\n{show}")
    assert [line.partition(", grad_fn")[0] for line in cell.lines] == [line.partition(", grad_fn")[0] for line in alone]


def test_a_module_without_parameters_in_data_mode(notebook: Notebook) -> None:
    notebook.run("import torch\nloss = torch.nn.MSELoss()\na, b = torch.ones(5, 2), torch.zeros(5, 2)")
    assert notebook.run("%%parallel data\nprint(loss(a, b).item())").said == {"1.0"}
