"""A model with everything that hangs on it, trained over ranks in several cells: bit for bit what one process gives."""

# ruff: noqa: E501

import copy

import torch

SETUP = """
import torch, copy, functools, random, weakref
from torch import nn
import torch.nn.functional as F
class Net(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(8, 16); self.b = nn.Linear(16, 2); self.b2 = self.b; self.log = []
    def forward(self, x): return self.b(F.relu(self.a(x)) * SCALE)
SCALE = 1.5
def helper(y): return y * SCALE
def loss_of(x, y): return F.cross_entropy(helper(model(x)), y)
torch.manual_seed(0)
model = Net(); opt = torch.optim.Adam(model.parameters(), 1e-2); sched = torch.optim.lr_scheduler.StepLR(opt, 1, 0.9)
ema = copy.deepcopy(model); ema_pairs = list(zip(ema.parameters(), model.parameters()))
params = list(model.parameters()); by_name = {'w': model.a.weight}
gen = torch.Generator().manual_seed(5); X = torch.randn(64, 8); Y = torch.randint(0, 2, (64,)); view = X[10:]
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 16, shuffle=True, generator=gen)
part = functools.partial(loss_of, X); meth = model.forward; lam = lambda: model.a.weight.sum()
hist = []; alias = hist
"""

CELL = """
for x, y in loader:
    opt.zero_grad(); loss = loss_of(x, y); loss.backward(); opt.step(); hist.append(loss.item()); model.log.append(len(hist))
    with torch.no_grad():
        for e, p in ema_pairs: e.lerp_(p, 0.1)
sched.step(); h = model(X)
assert params[0] is model.a.weight is by_name['w'] and opt.param_groups[0]['params'][0] is params[0] and model.b is model.b2
assert view.data_ptr() == X[10:].data_ptr() and meth.__self__ is model and alias is hist and loader.generator is gen
assert loss_of.__globals__ is globals() and part.func is loss_of and part.args[0] is X
assert lam() == model.a.weight.sum()
"""

STRUCTURE = """
torch.manual_seed(1)
model.extra = nn.Linear(2, 3); model.a.weight.data = torch.zeros(4, 8); model.b.bias = nn.Parameter(torch.ones(5)); del model.log
by_name.clear(); by_name['z'] = params; params.append(model.extra.weight); view.resize_(3, 3); X2 = X.t(); opt.add_param_group({'params': model.extra.parameters()})
model.a.half(); SCALE = 9.0; model.me = model
def new_helper(y): return y + SCALE
helper.tag = 'x'
"""

KEPT = ["model", "opt", "sched", "ema", "params", "by_name", "gen", "loader", "hist", "X", "view", "part", "lam", "meth"]


def equal(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_is_what_one_process_does(world):
    ns = world.namespace
    world.do(SETUP)
    kept = {name: ns[name] for name in KEPT}
    address = ns["model"].a.weight.data_ptr()
    one = {"__name__": "__main__"}
    exec(SETUP, one)
    for _ in range(2):
        assert world.run(CELL).notes == []
        exec(CELL, one)
        assert all(ns[name] is value for name, value in kept.items())
        assert ns["params"][0] is ns["model"].a.weight is ns["opt"].param_groups[0]["params"][0]
        equal(ns["model"], one["model"])
        equal(ns["ema"], one["ema"])
        assert ns["hist"] == one["hist"] and ns["model"].log == one["model"].log
        assert torch.equal(ns["gen"].get_state(), one["gen"].get_state())
        assert torch.equal(ns["params"][1].grad, one["params"][1].grad)
        assert ns["sched"].state_dict() == one["sched"].state_dict()
        for mine, other in zip(ns["opt"].state.values(), one["opt"].state.values(), strict=True):
            assert all(torch.equal(mine[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert address == ns["model"].a.weight.data_ptr()
    assert torch.equal(ns["h"], one["h"].detach()) and not ns["h"].requires_grad


def test_ranks_keep_the_graph_of_what_came_home_detached(world):
    world.do(SETUP)
    world.run("model.zero_grad(); h = model(X)")
    world.run("h.sum().backward(); g = model.a.weight.grad")
    assert world.packed.notes == []
    assert world.namespace["g"] is world.namespace["model"].a.weight.grad
    world.end.forget()
    world.run("k = h * 2")
    assert any("h goes to the ranks without the graph" in note for note in world.packed.notes)


def test_the_notebook_edits_between_cells(world):
    ns = world.namespace
    world.do(SETUP)
    world.run(CELL)
    with torch.no_grad():
        ns["model"].a.weight.mul_(0.5)
    ns["model"].a.bias.data.add_(1)
    ns["X"].numpy()[:] += 1
    ns["opt"].param_groups[0]["lr"] = 0.123
    ns["hist"].clear()
    world.run("q = (model.a.bias[0].item(), X[0, 0].item(), view[0, 0].item(), opt.param_groups[0]['lr'], len(hist))")
    assert ns["q"] == (ns["model"].a.bias[0].item(), ns["X"][0, 0].item(), ns["view"][0, 0].item(), 0.123, 0)


def test_structural_changes_come_back_in_place(world):
    ns = world.namespace
    world.do(SETUP)
    world.run(CELL)
    model, weight, view, bias = ns["model"], ns["model"].a.weight, ns["view"], ns["model"].b.bias
    world.run(STRUCTURE)
    assert model.extra.weight is ns["params"][-1] and model.a.weight is weight is ns["params"][0]
    assert weight.shape == (4, 8) and weight.dtype == torch.half and model.b.bias.shape == (5,) and model.b.bias is not bias
    assert not hasattr(model, "log") and model.me is model and ns["helper"].tag == "x"
    assert ns["by_name"] == {"z": ns["params"]} and ns["by_name"]["z"] is ns["params"]
    assert ns["opt"].param_groups[1]["params"][0] is model.extra.weight
    assert ns["X2"].data_ptr() == ns["X"].data_ptr() and view.shape == (3, 3)
    assert ns["new_helper"].__globals__ is ns and ns["new_helper"](1) == 10.0
    world.run("SCALE = 2.0")
    assert ns["new_helper"](1) == 3.0


def test_a_graph_of_overwritten_memory_is_refused(world):
    ns = world.namespace
    ns["w"] = torch.ones(3, requires_grad=True)
    ns["torch"] = torch
    y = (ns["w"] ** 2).sum()
    world.run("with torch.no_grad(): w.add_(1)")
    try:
        y.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        raise AssertionError("a stale graph was used")


def test_copies_are_independent(world):
    world.do(SETUP)
    world.namespace["twin"] = copy.deepcopy(world.namespace["model"])
    world.run("model.a.weight.data.zero_()")
    assert world.namespace["twin"].a.weight.abs().sum() > 0
