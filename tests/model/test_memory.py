"""What a rank holds is its part: parameters, gradients and optimiser state are nowhere twice."""

from __future__ import annotations

import pytest

from tests.model.programs import bytes_held
from tests.ranks import run_ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_hold_one_model_between_them(ranks: int) -> None:
    held = run_ranks(ranks, bytes_held, 128, 8, 400)
    _, whole = held[0]
    assert max(mine for mine, _ in held) * ranks <= 1.1 * whole
    assert sum(mine for mine, _ in held) <= 1.01 * whole
