"""Cells as people write them leave and print the same under the mode as in one process, or are refused in words."""

from __future__ import annotations

import functools

import pytest

from tests.cells import cells
from tests.equal import Outcome, run_all
from tests.model import snippets
from tests.ranks import run_ranks
from tests.zoo import LAYERED, REFUSED, ZOO

TOLERANCE = 1e-13
SNIPPETS = cells(snippets.CASES)
ON_THREE = list(SNIPPETS)[::4]

# Refused on all ranks alike, with these words.
SNIPPETS_REFUSED = {
    "backward_hook_reads": "register_full_backward_hook",
    "backward_hook_changes": "register_full_backward_hook",
    "vmap": "torch.vmap",
    "func_grad": "torch.func",
    "thread": "another thread",
}
# Raises, as what it does cannot be carried out.
RAISES = {"write_to_numpy": "read-only"}
# Whole on every rank, with a line that has these words.
WHOLE = {
    "sparse_gradients": "sparse gradients",
    "penalty_before_call": "a graph that uses its parameters is alive",
    "lazy": "lazy parameters",
}
# Micro-batches would change the result, so the model is called whole: what the line says. Of others none does.
REASONS = {
    "resnet (layers)": "bn (BatchNorm2d)",
    "unet (layers)": "d1.1 (BatchNorm2d)",
    "gpt (layers)": "drop (Dropout)",
    "branch (layers)": "Branch changes",
    "masked mean, masks full at first": "a mean over some entries",
    "style: loss inside, dict, ignored later": "where labels are negative",
    "style: forward hook, inner": "has hooks",
    "style: in place on its input": "it changes its arguments",
    "style: weight changed in place": "it changes its weights",
    "style: parameter replaced inside": "it replaces its weights",
}
IN_PIECES = ("mlp (layers)", "encoder, without dropout", "gpt, without dropout", "lstm, without dropout")
MIXING = """
class Centred(nn.Module):
    def __init__(self):
        super().__init__(); self.a = nn.Linear(6, 6); self.b = nn.Linear(6, 4); nn.init.zeros_(self.b.weight)
    def forward(self, x): h = self.a(x); return self.b(h - h.mean(0))
class Reads(Centred):
    def forward(self, x): h = self.a(x); return self.b(h if h.sum() > 0 else -h)
class Hooked(Centred):
    def forward(self, x):
        h = self.a(x)
        if h.requires_grad: h.register_hook(lambda g: g - g.mean(0))
        return self.b(h)
class Hidden(Centred):
    def forward(self, x): h = self.a(x); return self.b(h + h.roll(1, 0) - h.roll(1, 0).detach())
class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h): return h * 1.0
    @staticmethod
    def backward(ctx, g): return g.flip(0)
class Functional(Centred):
    def forward(self, x): return self.b(Own.apply(self.a(x)))
model, opt = Centred(), None
x, y = torch.randn(8, 6), torch.randint(4, (8,))
"""
MIXED = "loss = F.cross_entropy(model(x), y); loss.backward()"
NOT_ROW_BY_ROW = {
    "Centred": "its pieces do not give",
    "Reads": "it reads values into Python",
    "Hooked": "a backward pass through its pieces",
    "Hidden": "a backward pass through its pieces",
    "Functional": "a backward pass through its pieces",
}
MIXES = cells({name: (f"{MIXING}model = {name}()", MIXED) for name in NOT_ROW_BY_ROW})
MIXES |= cells({"Functional, evaluated": (f"{MIXING}model = Functional()", "with torch.no_grad(): out = model(x)")})
REASONS |= NOT_ROW_BY_ROW


@functools.cache
def programs(ranks: int) -> list[dict[str, Outcome]]:
    return run_ranks(ranks, run_all, ZOO, "model", {}, timeout=175)


@functools.cache
def bits(ranks: int) -> list[dict[str, Outcome]]:
    some = {name: cell for name, cell in SNIPPETS.items() if ranks == 2 or name in ON_THREE}
    return run_ranks(ranks, run_all, some, "model", {}, timeout=175)


@functools.cache
def in_pieces(ranks: int) -> list[dict[str, Outcome]]:
    some = {**ZOO, **MIXES} if ranks == 2 else {name: ZOO[name] for name in IN_PIECES}
    return run_ranks(ranks, run_all, some, "model", {"micro": 4}, timeout=175)


def refused(found: list[Outcome], words: str) -> bool:
    return all(outcome.refused == found[0].refused and words in outcome.refused for outcome in found)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", ZOO)
def test_a_program_is_equal_or_refused(ranks: int, name: str) -> None:
    found = [result[name] for result in programs(ranks)]
    if name in REFUSED:
        assert refused(found, REFUSED[name])
        return
    for outcome in found:
        assert outcome.equal(TOLERANCE), outcome
    if name in LAYERED:
        assert set(found[0].details["placed"].values()) == set(range(ranks))


@pytest.mark.parametrize(("ranks", "name"), [(2, name) for name in SNIPPETS] + [(3, name) for name in ON_THREE])
def test_a_snippet_is_equal_or_refused(ranks: int, name: str) -> None:
    found = [result[name] for result in bits(ranks)]
    if name in SNIPPETS_REFUSED:
        assert refused(found, SNIPPETS_REFUSED[name])
    elif name in RAISES:
        assert all(RAISES[name] in outcome.error for outcome in found)
    else:
        for outcome in found:
            assert outcome.equal(TOLERANCE), outcome
        if name in WHOLE:
            assert any(WHOLE[name] in line for line in found[0].lines)


@pytest.mark.parametrize(("ranks", "name"), [(2, name) for name in (*ZOO, *MIXES)] + [(3, name) for name in IN_PIECES])
def test_micro_batches_are_equal_or_not_made(ranks: int, name: str) -> None:
    found = [result[name] for result in in_pieces(ranks)]
    if name in REFUSED:
        assert refused(found, REFUSED[name])
        return
    for outcome in found:
        lines = [line for line in outcome.lines if line.startswith("micro-batches")]
        assert outcome.equal(TOLERANCE if name in REASONS else {**ZOO, **MIXES}[name].tolerance), outcome
        assert not (name in IN_PIECES and lines)
        assert any(REASONS.get(name, "") in line for line in lines) or name not in REASONS, lines
