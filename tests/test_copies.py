"""What all ranks have is written to by all of them, and seen by all."""

from __future__ import annotations

import pytest

from tests.copies import CELLS, VIEW
from tests.modes import MODES, tried

outcomes = tried(CELLS)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_one_process(mode: str, name: str) -> None:
    for rank, every in enumerate(outcomes(mode)):
        if VIEW in name and mode != "data":
            assert "retain_grad() cannot be left in a variable" in every[name].refused, every[name]
        else:
            assert every[name].equal(1e-12), f"rank {rank}: {every[name]}"
