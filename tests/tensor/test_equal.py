"""Cells as people write them leave and print the same with their layers split by columns as in one process."""

from __future__ import annotations

import functools

import pytest

from tests.cells import cells
from tests.equal import Outcome, run_all
from tests.model import snippets
from tests.ranks import run_ranks
from tests.zoo import ZOO

TOLERANCE = 1e-12
SNIPPETS = cells(snippets.CASES)
ON_THREE = list(SNIPPETS)[::8]

# Where rounding grows: numbers of lower precision, and ratios of numbers that are zero but for rounding.
LOOSE = {
    "autocast": 1e-2,
    "autocast_operations": 1e-2,
    "change_dtype": 1e-6,
    "lbfgs": 1e-2,  # of 5e5
    "tied_weight_changes_between_calls": 1e-6,  # of 1e11
}
# Raises, as what it does cannot be carried out.
RAISES = {"write_to_numpy": "read-only"}
# Runs whole, with a line that has these words.
WHOLE = {
    "lstm, batch first": "model.lstm (LSTM)",
    "style: multi-head attention, padding mask, evaluation": "runs whole on every rank",
}
SNIPPETS_WHOLE = {
    "sparse_gradients": "its gradients are sparse",
    "parameters_to_vector": "its .data was assigned",
    "penalty_before_call": "a graph that uses it was alive",
}
# No module of these can be split.
NOTHING = {
    "raw leaf tensors (--batch)", "lstm, sequence first, --batch-dim", "split function",
    "style: in-place activation, outermost", "style: lstm, sequence first",
    "style: lstm, as many layers as rows of a rank", "style: packed sequence", "style: lengths as a list",
    "style: lengths as a tensor", "style: scripted", "style: sparse embedding",
}  # fmt: skip
SNIPPETS_NOTHING = {"parameters_to_vector"}


@functools.cache
def programs(ranks: int) -> list[dict[str, Outcome]]:
    return run_ranks(ranks, run_all, ZOO, "model", {"how": "tensor"}, timeout=175)


@functools.cache
def bits(ranks: int) -> list[dict[str, Outcome]]:
    some = {name: cell for name, cell in SNIPPETS.items() if ranks == 2 or name in ON_THREE}
    return run_ranks(ranks, run_all, some, "model", {"how": "tensor"}, timeout=175)


def check(outcome: Outcome, tolerance: float, split: bool, whole: str) -> None:
    assert outcome.equal(tolerance, rounded=True), outcome
    assert any(whole in line for line in outcome.lines) or not whole, outcome.lines
    assert bool(outcome.details["split"]) == split, outcome.lines


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", ZOO)
def test_a_program_is_equal(ranks: int, name: str) -> None:
    for result in programs(ranks):
        check(result[name], ZOO[name].tolerance, name not in NOTHING, WHOLE.get(name, ""))


@pytest.mark.parametrize(("ranks", "name"), [(2, name) for name in SNIPPETS] + [(3, name) for name in ON_THREE])
def test_a_snippet_is_equal(ranks: int, name: str) -> None:
    for result in bits(ranks):
        if name in RAISES:
            assert RAISES[name] in result[name].error
        else:
            check(result[name], LOOSE.get(name, TOLERANCE), name not in SNIPPETS_NOTHING, SNIPPETS_WHOLE.get(name, ""))
