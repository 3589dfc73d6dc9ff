"""A view is where what it shows is."""

from __future__ import annotations

import pytest

from tests.modes import MODES, tried
from tests.views import CELLS, WHOLE

outcomes = tried(CELLS)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_one_process(mode: str, name: str) -> None:
    for rank, every in enumerate(outcomes(mode)):
        assert every[name].equal(1e-12), f"rank {rank}: {every[name]}"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("mode", ["data", "model --micro 4", "hybrid --mesh 2x2"])
def test_a_module_that_hands_out_rows_is_called_whole(mode: str, name: str) -> None:
    """And no other. Micro-batches are not made where buffers are written to."""
    said = [line for line in outcomes(mode)[0][name].lines if "whole" in line]
    if mode != "model --micro 4" or "buffer" not in name:
        assert any(WHOLE[name] in line for line in said) if WHOLE[name] else not said, said
