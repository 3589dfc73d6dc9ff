"""Gradients of weights that are computed last are those of one process, whatever the backward pass is asked for."""

from __future__ import annotations

import functools

import pytest

from tests.cells import cells
from tests.equal import Outcome, run_all
from tests.ranks import run_ranks

MODEL = """
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(),
    nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
x, y = torch.randn(12, 6), torch.randint(4, (12,))
"""
CHECKPOINTED = """
from torch.utils.checkpoint import checkpoint
class Inner(nn.Module):
    def __init__(self):
        super().__init__(); self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
    def forward(self, x): return x + checkpoint(self.b, torch.tanh(self.a(x)), use_reentrant=False)
class Outer(nn.Module):
    def __init__(self):
        super().__init__(); self.parts, self.out = nn.ModuleList([Inner(), Inner(), Inner()]), nn.Linear(6, 4)
    def forward(self, x):
        x = self.parts[1](self.parts[0](x))
        return self.out(checkpoint(self.parts[2], x, use_reentrant=False))
model = Outer()
"""
LOSS = "loss = F.cross_entropy(model(x), y)\n"
CASES = cells({
    "two passes over one graph": (MODEL, LOSS + "loss.backward(retain_graph=True); loss.backward()"),
    "a pass for some parameters, then one for all": (
        MODEL, LOSS + "loss.backward(inputs=[model[0].weight, model[6].bias], retain_graph=True); loss.backward()"
    ),
    "a pass for the input alone, then one for all": (
        MODEL + "x.requires_grad_()", LOSS + "(gx,) = torch.autograd.grad(loss, [x], retain_graph=True); loss.backward()"
    ),
    "gradients as results": (MODEL, LOSS + "grads = torch.autograd.grad(loss, [*model.parameters()])"),
    "a hook set after the call": (
        MODEL, LOSS + "hooks = [p.register_hook(lambda g: 2 * g) for p in model.parameters()]\nloss.backward()\n"
        "for h in hooks: h.remove()\ndel hooks"
    ),
    "a hook that reads": (
        MODEL, LOSS + "seen = []\nhooks = [p.register_hook(lambda g: seen.append(g.sum().item())) for p in model.parameters()]\n"
        "loss.backward()\nfor h in hooks: h.remove()\ndel hooks; seen.sort()"
    ),
    "checkpoints in a layer, and around one": (MODEL + CHECKPOINTED, LOSS + "loss.backward()"),
    "two calls, one pass": (MODEL, "loss = F.cross_entropy(model(x), y) + model(2 * x).square().mean()\nloss.backward()"),
    "two passes add up": (MODEL, "for part in x, 2 * x:\n    F.cross_entropy(model(part), y).backward()"),
    "frozen weights, frozen biases": (
        MODEL + "model[0].weight.requires_grad_(False); model[4].bias.requires_grad_(False); model[6].weight.requires_grad_(False)",
        LOSS + "loss.backward()",
    ),
    "a result that is not used": (MODEL, "out = model(x)\nF.cross_entropy(out[:5], y[:5]).backward()\ndel out"),
    "one weight in two layers, each with its bias": (
        MODEL + "model.append(nn.Linear(4, 4)); model.append(nn.Linear(4, 4))\nmodel[8].weight = model[7].weight",
        LOSS + "loss.backward()"
    ),
    "one weight on two ranks": (MODEL + "model[4].weight = model[2].weight", LOSS + "loss.backward()"),
    "one weight in two layers, one bias": (
        MODEL + "model.append(nn.Linear(4, 4)); model.append(nn.Linear(4, 4, bias=False))\nmodel[8].weight = model[7].weight",
        LOSS + "loss.backward()"
    ),
    "one bias in two layers": (MODEL + "model[4].bias = nn.Parameter(torch.randn(8)); model[2].bias = model[4].bias",
        LOSS + "loss.backward()"
    ),
    "sequences of rows": (MODEL.replace("(12, 6)", "(12, 3, 6)"), "loss = model(x).square().mean()\nloss.backward()"),
})  # fmt: skip


@functools.cache
def found() -> list[dict[str, Outcome]]:
    return run_ranks(2, run_all, CASES, "model", {"micro": 4})


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(name: str) -> None:
    for result in found():
        assert result[name].equal(1e-12), result[name]
