"""Cells as people write them leave and print the same with their layers split by columns as in one process."""

from __future__ import annotations

import functools
import re

import pytest

from tests.model.harness import Outcome, run_all
from tests.model.snippets import CASES as SNIPPETS
from tests.model.test_equal import COMMON
from tests.model.zoo import ZOO
from tests.ranks import run_ranks

TOLERANCE = 1e-12
CASES = {**ZOO, **COMMON, **SNIPPETS}
ON_THREE = {*ZOO, *COMMON, *list(SNIPPETS)[::8]}

# Where rounding grows: numbers of lower precision, and ratios of numbers that are zero but for rounding.
LOOSE = {
    "autocast": 1e-2,
    "autocast_operations": 1e-2,
    "common: bfloat16 autocast": 2e-2,
    "change_dtype": 1e-6,
    "lbfgs": 1e-3,  # of 5e5
    "tied_weight_changes_between_calls": 1e-6,  # of 1e11
    "common: lbfgs": 1e-8,
    "common: mlp, adamw": 1e-9,
}
# Raises, as what it does cannot be carried out.
RAISES = {"write_to_numpy": "read-only"}
# Runs whole, with a line that has these words.
WHOLE = {
    "sparse_gradients": "its gradients are sparse",
    "parameters_to_vector": "its .data was assigned",
    "penalty_before_call": "a graph that uses it was alive",
    "common: lstm, batch first": "model.lstm (LSTM)",
    "common: style: multi-head attention, padding mask, evaluation": "runs whole on every rank",
}
# No module of these can be split.
NOTHING = {
    "parameters_to_vector",
    *(
        f"common: {name}"
        for name in (
            "raw leaf tensors (--batch)", "lstm, sequence first, --batch-dim", "split function",
            "style: in-place activation, outermost", "style: lstm, sequence first",
            "style: lstm, as many layers as rows of a rank", "style: packed sequence", "style: lengths as a list",
            "style: lengths as a tensor", "style: scripted", "style: sparse embedding",
        )
    ),
}  # fmt: skip
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@functools.cache
def outcomes(ranks: int) -> list[dict[str, Outcome]]:
    cases = {name: case for name, case in CASES.items() if ranks == 2 or name in ON_THREE}
    return run_ranks(ranks, run_all, cases, {"how": "tensor"}, timeout=175)


def alike(shown: str, tolerance: float) -> bool:
    """Whether two texts are the same but for rounding."""
    one, _, many = shown.partition("---\n")
    numbers = zip(NUMBER.findall(one), NUMBER.findall(many), strict=False)
    same = all(abs(float(a) - float(b)) <= tolerance * max(1.0, abs(float(a))) for a, b in numbers)
    return NUMBER.sub("#", one) == NUMBER.sub("#", many) and same


@pytest.mark.parametrize(("ranks", "name"), [(2, name) for name in CASES] + [(3, name) for name in CASES if name in ON_THREE])
def test_a_cell_is_equal(ranks: int, name: str) -> None:
    tolerance = LOOSE.get(name, TOLERANCE)
    for result in outcomes(ranks):
        outcome = result[name]
        assert not outcome.refused
        if name in RAISES:
            assert RAISES[name] in outcome.error
            continue
        assert not outcome.error
        assert alike(outcome.shown, tolerance), outcome.shown
        assert outcome.random and outcome.keys
        assert outcome.difference <= tolerance, outcome.worst
        if name in WHOLE:
            assert any(WHOLE[name] in line for line in outcome.lines), outcome.lines
        assert bool(outcome.details["split"]) == (name not in NOTHING), outcome.lines
