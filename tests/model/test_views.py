"""A view is where what it shows is."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.equal import Outcome, run_all
from tests.model.views import CELLS
from tests.ranks import run_ranks

MODES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "data": (2, "data", {}),
    "model": (2, "model", {}),
    "model, 3 ranks": (3, "model", {}),
    "model --micro 4": (2, "model", {"micro": "4"}),
    "model --how tensor": (2, "model", {"how": "tensor"}),
    "hybrid --mesh 2x2": (4, "hybrid", {"mesh": "2x2"}),
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
