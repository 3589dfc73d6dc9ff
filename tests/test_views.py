"""A view is where what it shows is."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.equal import Outcome, run_all
from tests.ranks import run_ranks
from tests.views import CELLS, WHOLE

MODES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "data": (2, "data", {}),
    "model": (2, "model", {}),
    "model, 3 ranks": (3, "model", {}),
    "model --micro 4": (2, "model", {"micro": "4"}),
    "model --how tensor": (2, "model", {"how": "tensor"}),
    "hybrid --mesh 2x2": (4, "hybrid", {"mesh": "2x2"}),
    "hybrid --mesh 2x2 --micro 2": (4, "hybrid", {"mesh": "2x2", "micro": "2"}),
}


@cache
def outcomes(mode: str) -> list[dict[str, Outcome]]:
    size, name, options = MODES[mode]
    return run_ranks(size, run_all, CELLS, name, options, timeout=300)


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
