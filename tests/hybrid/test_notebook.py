"""A mesh from a real notebook."""

from __future__ import annotations

import time
from pathlib import Path

from tests.model.test_notebook import DIFFERENCE, SETUP
from tests.notebook import Notebook

HYBRID = "%%parallel hybrid --mesh 2x2"


def test_the_notebooks_own_objects_are_trained(notebook: Notebook) -> None:
    notebook.run(SETUP)
    alone = notebook.run("torch.manual_seed(1)\ntrain(alone, opt_alone, 5)\nstream = torch.get_rng_state()\ntorch.manual_seed(1)")
    cell = notebook.run(f"{HYBRID} --show split --check\ntrain(model, opt, 5)")
    assert cell.said == alone.said and "layers by stage: 1, 2" in cell.stdout
    assert "same as one process after 3 steps" in cell.closing
    assert notebook.value(DIFFERENCE) <= 1e-13
    assert notebook.value("torch.equal(stream, torch.get_rng_state())")
    plan = "nbpar.last().plan"
    assert notebook.value(f"(str({plan}.mesh), {plan}.owners, {plan}.rows)") == ("2x2", (0, 1, 1), (16, 16))


def test_layers_are_split_by_columns_over_the_second_axis(notebook: Notebook) -> None:
    notebook.run(SETUP + "\ntorch.manual_seed(1)\ntrain(alone, opt_alone, 5)\ntorch.manual_seed(1)")
    cell = notebook.run(f"{HYBRID} --how tensor --show split --check\ntrain(model, opt, 5)")
    assert "same as one process after 3 steps" in cell.closing
    assert notebook.value(DIFFERENCE) <= 1e-12
    plan = "nbpar.last().plan"
    assert notebook.value(f"(str({plan}.mesh), all(map(len, {plan}.columns)), {plan}.rows)") == ("2x2", True, (16, 16))


def test_a_wrong_line_is_told_in_one(notebook: Notebook) -> None:
    wrong = notebook.run(f"{HYBRID} -n 3\n1", fails=True)
    assert wrong.error == "OptionError" and "the mesh has 4 ranks" in wrong.traceback
    wrong = notebook.run(f"{HYBRID} --place model.0=2\nmodel(x)", fails=True)
    assert wrong.error == "OptionError" and "ranks are 0 to 1" in wrong.traceback


def test_an_error_on_the_rows_of_one_rank_ends_the_cell(notebook: Notebook) -> None:
    notebook.run("words = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))\nids = torch.tensor([1, 2, 3, 4, 5, 6, 7, 10])")
    cell = notebook.run(f"{HYBRID}\nwords(ids[:4])\nwords(ids)", fails=True)
    assert "index out of range" in cell.traceback
    assert notebook.run(f"{HYBRID}\nprint(words(ids[:6]).shape)").lines == ["torch.Size([6, 4])"]


def test_an_interrupt_keeps_the_steps_done(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(SETUP)
    begun = tmp_path / "begun"
    message = notebook.send(f"{HYBRID}\ntrain(model, opt, 5)\nopen({str(begun)!r}, 'w').close()\ntrain(model, opt, 1_000_000)")
    while not begun.exists():
        time.sleep(0.1)
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and "as they were before" not in cell.traceback
    assert notebook.value("opt.state[first]['step'].item()") > 3
