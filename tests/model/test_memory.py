"""What a rank holds is its part: parameters, gradients and optimiser state are nowhere twice, and nowhere all at a time."""

from __future__ import annotations

import pytest

from tests.model.programs import bytes_held
from tests.ranks import run_ranks

MIB = 2**20
KEPT = 64 * MIB  # of what a cell makes before anything is dropped
ROOM = 40 * MIB  # layers on their way, and Python's own


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_hold_one_gpt_of_160_mib_between_them(ranks: int) -> None:
    found = run_ranks(ranks, bytes_held, 512, 13, 2048)
    whole, weights = found[0]["whole"], found[0]["weights"]
    assert weights >= 160 * MIB and 4 * weights <= whole  # with gradients and AdamW's two averages
    assert max(rank["held"] for rank in found) * ranks <= 1.1 * whole
    assert 0.99 * whole <= sum(rank["held"] for rank in found) <= 1.01 * whole
    assert max(rank["grown"] for rank in found) <= max(weights / ranks, KEPT) + ROOM
