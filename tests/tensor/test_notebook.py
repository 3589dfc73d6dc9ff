"""Layers split by columns from a real notebook."""

from __future__ import annotations

from tests.model.test_notebook import DIFFERENCE, SETUP
from tests.notebook import Notebook


def test_the_notebooks_own_objects_are_trained(notebook: Notebook) -> None:
    notebook.run(SETUP)
    alone = notebook.run("torch.manual_seed(1)\ntrain(alone, opt_alone, 5)\nstream = torch.get_rng_state()\ntorch.manual_seed(1)")
    cell = notebook.run("%%parallel model --how tensor\ntrain(model, opt, 5)")
    (mine,), (expected,) = cell.said, alone.said
    assert abs(float(mine) - float(expected)) <= 1e-12
    assert notebook.value(DIFFERENCE) <= 1e-12
    assert notebook.value("model[0].weight is first and type(first) is nn.Parameter")
    assert notebook.value("torch.equal(stream, torch.get_rng_state())")
    notebook.run("torch.manual_seed(2)\ntrain(alone, opt_alone, 4)\ntorch.manual_seed(2)\ntrain(model, opt, 2)")
    notebook.run("%%parallel model --how tensor\ntrain(model, opt, 2)")
    assert notebook.value(DIFFERENCE) <= 1e-12


def test_a_check_a_failure_and_what_stays(notebook: Notebook) -> None:
    notebook.run(SETUP)
    cell = notebook.run("%%parallel model --how tensor --check\ntrain(model, opt, 4)")
    assert "same as one process after 3 steps" in cell.closing
    notebook.run("%%parallel model --how tensor\ntrain(model, opt, 2)\n1 / 0", fails=True)
    assert notebook.value("opt.state[first]['step'].item()") == 6
    failed = notebook.run(
        "%%parallel model --how tensor\ntrain(model, opt, 2)\nif nbpar.rank(): 1 / 0\ntrain(model, opt, 2)", fails=True
    )
    assert failed.error == "CellError"
    assert notebook.value("opt.state[first]['step'].item()") == 6
    notebook.run("%%parallel model --keep kept\nkept = copy.deepcopy(model)")
    refused = notebook.run("%%parallel model --how tensor\nkept(x)", fails=True)
    assert refused.error == "Unsupported" and "--how tensor needs them whole" in refused.traceback
