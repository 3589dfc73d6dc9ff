"""A mesh from a real notebook."""

from __future__ import annotations

from tests.model.test_notebook import DIFFERENCE, SETUP
from tests.notebook import Notebook


def test_the_notebooks_own_objects_are_trained(notebook: Notebook) -> None:
    notebook.run(SETUP)
    alone = notebook.run("torch.manual_seed(1)\ntrain(alone, opt_alone, 5)\nstream = torch.get_rng_state()\ntorch.manual_seed(1)")
    cell = notebook.run("%%parallel hybrid --mesh 2x2 --show split\ntrain(model, opt, 5)")
    assert cell.said == alone.said and "layers by stage: 1, 2" in cell.stdout
    assert "4 ranks" in cell.stdout
    assert notebook.value(DIFFERENCE) <= 1e-13
    assert notebook.value("torch.equal(stream, torch.get_rng_state())")
    plan = "nbpar.last().plan"
    assert notebook.value(f"(str({plan}.mesh), {plan}.owners, {plan}.rows)") == ("2x2", (0, 1, 1), (16, 16))
    wrong = notebook.run("%%parallel hybrid --mesh 2x2 -n 3\n1", fails=True)
    assert wrong.error == "OptionError" and "the mesh has 4 ranks" in wrong.traceback
