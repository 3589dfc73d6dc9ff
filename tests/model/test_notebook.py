"""The layers split from a real notebook: what comes home, and what a failure or an interrupt leaves."""

from __future__ import annotations

from tests.notebook import Notebook

SETUP = """import copy, torch, torch.nn as nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
x, y = torch.randn(32, 8).double(), torch.randint(0, 3, (32,))
alone = copy.deepcopy(model)
opt, opt_alone = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, alone))
def train(model, opt, steps):
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    print(loss.item())
first = model[0].weight
"""
DIFFERENCE = "max((a - b).abs().max().item() for a, b in zip(model.parameters(), alone.parameters()))"


def test_the_notebooks_own_objects_are_trained(notebook: Notebook) -> None:
    notebook.run(SETUP)
    alone = notebook.run("torch.manual_seed(1)\ntrain(alone, opt_alone, 5)\nstream = torch.get_rng_state()\ntorch.manual_seed(1)")
    cell = notebook.run("%%parallel model\ntrain(model, opt, 5)")
    assert cell.said == alone.said and "layers by rank: 1, 2" in cell.stdout
    assert notebook.value(DIFFERENCE) <= 1e-13
    assert notebook.value("(model[0].weight is first, opt.param_groups[0]['params'][0] is first, first.is_meta)") == (
        True,
        True,
        False,
    )
    assert notebook.value("torch.equal(stream, torch.get_rng_state())")
    again = notebook.run("train(alone, opt_alone, 2)\ntorch.set_rng_state(stream)")
    assert notebook.run("%%parallel model\ntrain(model, opt, 2)").said == again.said
    assert notebook.value(DIFFERENCE) <= 1e-13


def test_a_failure_alike_keeps_what_was_done_and_one_on_a_rank_does_not(notebook: Notebook) -> None:
    notebook.run(SETUP)
    notebook.run("%%parallel model\ntrain(model, opt, 2)\n1 / 0", fails=True)
    assert notebook.value("opt.state[first]['step'].item()") == 2
    cell = notebook.run("%%parallel model\ntrain(model, opt, 2)\nif nbpar.rank(): 1 / 0\ntrain(model, opt, 2)", fails=True)
    assert cell.error == "CellError" and "was waiting in" in cell.traceback
    assert notebook.value("opt.state[first]['step'].item()") == 2
    notebook.run("%%parallel model\ntrain(model, opt, 1)")
    assert notebook.value("opt.state[first]['step'].item()") == 3


def test_a_loss_of_another_cell_is_not_in_the_way(notebook: Notebook) -> None:
    """Its graph is still there on the ranks, and holds the parameters."""
    notebook.run(SETUP)
    step = "\nopt.zero_grad()\nloss = nn.functional.cross_entropy(model(x), y)\nloss.backward()\nopt.step()"
    notebook.run("stream = torch.get_rng_state()" + step.replace("model", "alone").replace("opt.", "opt_alone.") * 2)
    notebook.run("torch.set_rng_state(stream)")
    notebook.run("%%parallel data" + step)
    assert "layers by rank: 1, 2" in notebook.run("%%parallel model" + step).stdout
    assert notebook.value(DIFFERENCE) <= 1e-13


def test_an_interrupt_keeps_the_steps_done(notebook: Notebook) -> None:
    notebook.run(SETUP)
    notebook.run("%%parallel model\ntrain(model, opt, 1)")
    message = notebook.send_until(
        "%%parallel model\ntrain(model, opt, 15)\nprint('begun', flush=True)\ntrain(model, opt, 1_000_000)"
    )
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and "as they were before" not in cell.traceback
    assert notebook.value("opt.state[first]['step'].item()") > 10


def test_a_gradient_that_was_retained_comes_home(notebook: Notebook) -> None:
    notebook.run(SETUP)
    backward = "h = model[0](x); h.retain_grad(); model[3](torch.relu(h)).sum().backward()"
    notebook.run(f"{backward}\nexpected = h.grad")
    for mode in ("data", "model", "model --how tensor"):
        notebook.run(f"%%parallel {mode} -n 2\n{backward}")
        assert notebook.value("(h.grad - expected).abs().max().item()") <= 1e-15, mode
        assert notebook.value("h.grad is not expected")
