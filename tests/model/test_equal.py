"""Cells as people write them leave and print the same under the mode as in one process, or are refused in words."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.model import snippets, zoo
from tests.model.harness import Outcome, run_all
from tests.ranks import run_ranks

TOLERANCE = 1e-13
CASES = {**zoo.ZOO, **snippets.CASES}

# Refused on all ranks alike, with these words.
REFUSED = {
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


@functools.cache
def outcomes(ranks: int) -> list[dict[str, Outcome]]:
    cases = CASES if ranks == 2 else {name: CASES[name] for name in (*zoo.ZOO, *list(snippets.CASES)[::3])}
    return run_ranks(ranks, run_all, cases, {}, timeout=170)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_cell_is_equal_or_refused(name: str, ranks: int) -> None:
    found: list[Any] = [result.get(name) for result in outcomes(ranks)]
    if None in found:
        assert ranks == 3
        return
    if name in REFUSED:
        assert {outcome.refused for outcome in found} == {found[0].refused}
        assert REFUSED[name] in found[0].refused
    elif name in RAISES:
        assert all(RAISES[name] in outcome.error for outcome in found)
    else:
        for outcome in found:
            assert not outcome.refused and not outcome.error
            assert outcome.text, outcome.shown
            assert outcome.random and outcome.keys
            assert outcome.difference <= TOLERANCE, outcome.worst
        if name in WHOLE:
            assert any(WHOLE[name] in line for line in found[0].lines)
        elif name in zoo.ZOO:
            assert set(found[0].details["placed"].values()) == set(range(ranks))
