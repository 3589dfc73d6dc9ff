"""Cells as people write them leave and print the same under the mode as in one process, or are refused in words."""

from __future__ import annotations

import functools

import pytest

from tests.data import styles  # noqa: F401  (adds its cells to the zoo)
from tests.data import zoo as common
from tests.model import snippets, zoo
from tests.model.harness import Outcome, run_all
from tests.ranks import run_ranks

TOLERANCE, MICRO_TOLERANCE = 1e-13, 1e-12

# Cells of the data-parallel mode, but for those about its own options and about processes of a DataLoader.
COMMON = {
    f"common: {name}": (cell.setup, cell.train)
    for name, cell in common.CELLS.items()
    if "workers" not in name and not name.startswith("--loss local")
}
CASES = {**zoo.ZOO, **snippets.CASES, **COMMON}
ON_THREE = {*zoo.ZOO, *list(snippets.CASES)[::4], *list(COMMON)[::4]}

# Refused on all ranks alike, with these words.
REFUSED = {
    "backward_hook_reads": "register_full_backward_hook",
    "backward_hook_changes": "register_full_backward_hook",
    "vmap": "torch.vmap",
    "func_grad": "torch.func",
    "thread": "another thread",
    "common: style: per-sample gradients by vmap": "torch.vmap",
    "common: style: multi-head attention, padding mask, evaluation": "set_fastpath_enabled",
}
# Raises, as what it does cannot be carried out.
RAISES = {"write_to_numpy": "read-only"}
# Whole on every rank, with a line that has these words.
WHOLE = {
    "sparse_gradients": "sparse gradients",
    "penalty_before_call": "a graph that uses its parameters is alive",
    "lazy": "lazy parameters",
}


@functools.cache
def outcomes(ranks: int) -> list[dict[str, Outcome]]:
    cases = {name: case for name, case in CASES.items() if ranks == 2 or name in ON_THREE}
    return run_ranks(ranks, run_all, cases, {}, timeout=175)


def in_pieces(ranks: int, cases: dict[str, tuple[str, str]]) -> list[dict[str, Outcome]]:
    return run_ranks(ranks, run_all, cases, {"micro": 4})


def check(outcome: Outcome, tolerance: float) -> None:
    assert not outcome.refused and not outcome.error
    assert outcome.text, outcome.shown
    assert outcome.random and outcome.keys
    assert outcome.difference <= tolerance, outcome.worst


@pytest.mark.parametrize(("ranks", "name"), [(2, name) for name in CASES] + [(3, name) for name in CASES if name in ON_THREE])
def test_a_cell_is_equal_or_refused(ranks: int, name: str) -> None:
    found = [result[name] for result in outcomes(ranks)]
    if name in REFUSED:
        assert {outcome.refused for outcome in found} == {found[0].refused}
        assert REFUSED[name] in found[0].refused
    elif name in RAISES:
        assert all(RAISES[name] in outcome.error for outcome in found)
    else:
        for outcome in found:
            check(outcome, TOLERANCE)
        if name in WHOLE:
            assert any(WHOLE[name] in line for line in found[0].lines)
        elif name in zoo.ZOO:
            assert set(found[0].details["placed"].values()) == set(range(ranks))


@pytest.mark.parametrize("ranks", [2, 3])
def test_micro_batches_are_equal(ranks: int) -> None:
    for results in in_pieces(ranks, zoo.MICRO):
        for name, outcome in results.items():
            check(outcome, MICRO_TOLERANCE)
            assert not any(line.startswith("micro-batches") for line in outcome.lines), name


def test_where_pieces_would_change_the_result_the_model_is_called_whole() -> None:
    reasons = {"resnet": "bn (BatchNorm2d)", "unet": "d1.1 (BatchNorm2d)", "gpt": "drop (Dropout)", "branch": "Branch changes"}
    mixing = """
class Centred(nn.Module):
    def __init__(self):
        super().__init__(); self.a = nn.Linear(6, 6); self.b = nn.Linear(6, 4); nn.init.zeros_(self.b.weight)
    def forward(self, x): h = self.a(x); return self.b(h - h.mean(0))
class Reads(Centred):
    def forward(self, x): h = self.a(x); return self.b(h if h.sum() > 0 else -h)
model, opt = Centred(), None
x, y = torch.randn(8, 6), torch.randint(4, (8,))
"""
    cell = "loss = F.cross_entropy(model(x), y); loss.backward()"
    cases = {name: zoo.ZOO[name] for name in reasons}
    ignored = common.CELLS["style: loss inside, dict, ignored later"]
    cases["ignored"], reasons["ignored"] = (ignored.setup, ignored.train), "where labels are negative"
    cases |= {"mixing": (mixing, cell), "reads": (mixing + "model = Reads()", cell)}
    reasons |= {"mixing": "its pieces do not give", "reads": "it reads values into Python"}
    for results in in_pieces(2, cases):
        for name, outcome in results.items():
            check(outcome, TOLERANCE)
            assert any(reasons[name] in line for line in outcome.lines), outcome.lines
