"""Models that stay on the ranks after a cell: trained on, called, brought to the notebook, saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook import Notebook

SETUP = """import copy, torch, torch.nn as nn
torch.set_num_threads(1)  # as each rank has: bits depend on it
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU())
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)
    def forward(self, x):
        return self.head(self.norm(self.body(x)))
torch.manual_seed(0)
x, y = torch.randn(32, 8).double(), torch.randint(0, 3, (32,))
def train(model, opt, steps):
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    return loss.item()
"""
BUILD = """torch.manual_seed(1)
model = Net().double()
adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = [train(model, adam, 2)]"""


def alone(code: str) -> str:
    """The same for the model that the notebook trains itself."""
    return code.replace("model", "alone").replace("adam", "adam_alone").replace("losses", "expected")


DIFFERENCE = "max((a - b).abs().max().item() for a, b in zip(whole.state_dict().values(), alone.state_dict().values()))"
SAME = "all(torch.equal(a, b) for a, b in zip({}.state_dict().values(), {}.state_dict().values()))"


@pytest.fixture(scope="module")
def kept() -> object:
    """A notebook with a model that was made and trained on the ranks, and the same one trained in the notebook itself."""
    with Notebook() as notebook:
        notebook.run(SETUP)
        notebook.run(alone(BUILD))
        notebook.run("%parallel start -n 2")
        notebook.run("%%parallel model --keep model\n" + BUILD)
        yield notebook


def both(kept: Notebook, code: str) -> None:
    """On the kept model by the ranks, and on the other in the notebook, from the same random state."""
    kept.run("torch.manual_seed(5)\n" + alone(code))
    kept.run("torch.manual_seed(5)")
    kept.run("%%parallel model\n" + code)


def test_a_model_that_the_notebook_made_stays_with_its_optimiser(kept: Notebook) -> None:
    """Adam's state comes to be in the cell, in a dict that the notebook knows: it stays too."""
    kept.run(alone("torch.manual_seed(2)\nmodel3 = Net().double(); adam3 = torch.optim.Adam(model3.parameters(), 1e-2)"))
    kept.run("torch.manual_seed(2)\nmodel3 = Net().double(); adam3 = torch.optim.Adam(model3.parameters(), 1e-2)")
    cell = "torch.manual_seed(6)\nlast3 = train(model3, adam3, 3)"
    for keep in (" --keep model3", ""):
        kept.run(alone(cell).replace("last3", "expected3"))
        kept.run(f"%%parallel model{keep}\n{cell}")
        assert kept.value("(type(model3).__name__, type(adam3).__name__)") == ("RankRef", "RankRef")
        assert kept.value("last3 == expected3")


def test_a_kept_model_is_trained_on_in_later_cells(kept: Notebook) -> None:
    assert kept.value("(type(model).__name__, type(adam).__name__)") == ("RankRef", "RankRef")
    assert kept.value("losses == expected")
    both(kept, "losses.append(train(model, adam, 2))\nsgd = torch.optim.SGD(model.parameters(), lr=0.1)\ntrain(model, sgd, 1)")
    assert kept.value("losses == expected")
    assert kept.value("(type(model).__name__, type(adam).__name__, type(sgd).__name__)") == ("RankRef",) * 3
    cell = kept.run("%%parallel model\nparts = [name for name, p in model.named_parameters() if p.grad is not None]")
    assert "layers by rank: 1, 3" in cell.stdout and kept.value("len(parts)") == 8


def test_a_kept_model_is_gathered(kept: Notebook) -> None:
    kept.run("whole = model.gather()")
    assert kept.value("(type(whole) is Net, type(model).__name__)") == (True, "RankRef")
    assert kept.value(DIFFERENCE) == 0
    kept.run("whole, optimiser = nbpar.gather(model, adam)")
    assert kept.value("optimiser.param_groups[0]['params'][0] is whole.body[0].weight")
    averages = "[state['exp_avg'].sum().item() for state in {}.state.values()]"
    assert kept.value(averages.format("optimiser")) == kept.value(averages.format("adam_alone"))
    assert kept.value(SAME.format("model", "alone"))


def test_a_kept_model_is_called_from_the_notebook(kept: Notebook) -> None:
    kept.run("torch.manual_seed(2)\na = alone(x)\ntorch.manual_seed(2)\nb = model(x)")
    assert kept.value("(torch.equal(a, b), b.requires_grad)") == (True, False)
    kept.run("model.eval(); alone.eval()")
    assert kept.value("torch.equal(alone(x[:5]), model(x=x[:5]))")
    assert kept.value("(alone.norm.running_mean - model.state_dict()['norm.running_mean']).abs().max().item()") == 0
    kept.run("model.train(); alone.train()")
    cell = kept.run("model(x[:, :3])", fails=True)
    assert cell.error == "CellError" and "mat1 and mat2" in cell.traceback
    assert kept.value("torch.equal(alone.eval()(x), model.eval()(x))")
    for use, words in (("model.head", "nbpar.RankRef"), ("model[0]", "on the ranks"), ("len(model)", "on the ranks")):
        assert kept.run(use, fails=True).error == "CannotTravel", words


def test_other_modes_say_that_the_layers_are_apart(kept: Notebook) -> None:
    for mode in ("data", "each"):
        cell = kept.run(f"%%parallel {mode}\nmodel(x)", fails=True)
        assert cell.error == "Unsupported" and "model = model.gather()" in cell.traceback


def test_what_the_notebook_had_is_kept_when_asked(kept: Notebook) -> None:
    kept.run("torch.manual_seed(3)\nmine = Net().double()\nother = copy.deepcopy(mine)")
    kept.run("opt_mine = torch.optim.SGD(mine.parameters(), lr=0.1)")
    kept.run("opt_other = torch.optim.SGD(other.parameters(), lr=0.1)\nhead = mine.head\ntorch.manual_seed(4)")
    cell = kept.run("%%parallel model --keep mine\nhere = train(mine, opt_mine, 2)")
    assert "nbpar: mine (__main__.Net) stays on the ranks. It stayed as --keep asked." in cell.notes
    assert "nbpar: opt_mine (torch.optim.sgd.SGD) stays on the ranks. It holds parameters of mine." in cell.notes
    assert "nbpar: head: as before this cell, as what it belongs to stays on the ranks." in cell.notes
    kept.run("torch.manual_seed(4)\nthere = train(other, opt_other, 2)\nmine = mine.gather()")
    assert kept.value("here == there")
    assert kept.value(SAME.format("mine", "other"))


def test_a_model_of_data_mode_is_kept_and_called(kept: Notebook) -> None:
    kept.run("torch.manual_seed(3)\nmodel2 = Net().double()\nalone2 = copy.deepcopy(model2).eval()")
    kept.run("%%parallel data --keep model2\nmodel2.eval()")
    assert kept.value("type(model2).__name__") == "RankRef"
    assert kept.value("(model2(x) - alone2(x)).abs().max().item()") < 1e-15


def test_a_kept_model_is_saved_and_read(kept: Notebook, tmp_path: Path) -> None:
    kept.run(f"path = {str(tmp_path / 'run')!r}\nnbpar.save({{'model': model, 'adam': adam}}, path)")
    kept.run("fresh = {'model': Net().double()}\nnbpar.load(fresh, path)")
    assert kept.value(SAME.format("fresh['model']", "alone"))  # one process reads what two ranks wrote
    both(kept, "losses.append(train(model, adam, 1))")
    kept.run("nbpar.load({'model': model}, path)")
    assert kept.value(SAME.format("model", "fresh['model']")) and not kept.value(SAME.format("model", "alone"))
    cell = kept.run("nbpar.load(model, path)", fails=True)
    assert cell.error == "OptionError" and "is a checkpoint of something else" in cell.traceback
    cell = kept.run("nbpar.load(model, path + '2')", fails=True)
    assert cell.error == "OptionError" and "is no checkpoint of nbpar.save" in cell.traceback


def test_a_checkpoint_is_trained_on_by_another_number_of_ranks(kept: Notebook, tmp_path: Path) -> None:
    kept.run(f"path = {str(tmp_path / 'run')!r}\nnbpar.save({{'model': alone, 'adam': adam_alone}}, path)")
    cell = kept.run("%parallel start -n 3")
    assert "model, which stayed on the ranks, is lost. model = nbpar.load(" in cell.stdout
    kept.run("both = nbpar.load(path)\nmodel, adam = both['model'], both['adam']")
    both(kept, "losses.append(train(model, adam, 2))")
    assert kept.value("losses[-1] == expected[-1]") and kept.value(SAME.format("model", "alone"))
    cell = kept.run("%%parallel model\nmodel.eval()(x).sum()")
    assert "layers by rank: 1, 1, 2" in cell.stdout


def test_what_is_lost_with_the_ranks_is_said(kept: Notebook) -> None:
    cell = kept.run("%parallel restart")
    assert "model, which stayed on the ranks, is lost." in cell.stdout
    cell = kept.run("model(x)", fails=True)
    assert cell.error == "CannotTravel" and "It was on ranks that have ended since. model = nbpar.load(" in cell.traceback
    cell = kept.run("%%parallel model\nmodel(x)", fails=True)
    assert cell.error == "CannotTravel" and "It was on ranks that have ended since. model = nbpar.load(" in cell.traceback


def test_what_is_too_large_stays_without_being_asked(kept: Notebook) -> None:
    """More than 1 GiB; its zeros take no memory until they are written to."""
    kept.run("""class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2**26), requires_grad=False)
    def forward(self, x):
        return x + self.w[:8].double()""")
    cell = kept.run("%%parallel model -n 2\nbig = nn.Sequential(*[Wide() for _ in range(5)])\nout = big(x)")
    why = "Whole, it would take 1,280 MiB in each of 3 processes; --out NAME brings it all the same."
    assert f"nbpar: big (torch.nn.modules.container.Sequential) stays on the ranks. {why}" in cell.notes
    assert kept.value("(type(big).__name__, torch.equal(out, x), torch.equal(big(x), x))") == ("RankRef", True, True)
    kept.run("del big")


def test_what_was_brought_to_the_notebook_is_not_lost(kept: Notebook) -> None:
    kept.run("%%parallel model --keep tall\ntall = Net().double()\ntall(x).sum()")
    kept.run("tall = tall.gather()")
    assert "is lost" not in kept.run("%parallel restart").stdout
    assert kept.value("tall(x).shape[0]") == 32
