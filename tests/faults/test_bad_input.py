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


def test_input_says_that_nobody_can_answer(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel\ninput('name? ')", fails=True)
    assert cell.status == "error"
    works(notebook)


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
