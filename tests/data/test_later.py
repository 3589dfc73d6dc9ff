"""Branches that a program takes later are seen, and treated as first calls are."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.data.test_equality import BACKEND
from tests.equal import Outcome, run_all
from tests.later import APART, CELLS
from tests.ranks import run_ranks

MODES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "data": (2, "data", {}),
    "data, 3 ranks": (3, "data", {}),
    "model": (2, "model", {}),
    "model --micro 4": (2, "model", {"micro": 4}),
    "model --micro auto": (2, "model", {"micro": "auto"}),
    "model --how tensor": (2, "model", {"how": "tensor"}),
    "hybrid --mesh 2x2": (4, "hybrid", {"mesh": "2x2"}),
    "hybrid --mesh 2x2 --micro 2": (4, "hybrid", {"mesh": "2x2", "micro": 2}),
    "hybrid --mesh 2x2 --how tensor": (4, "hybrid", {"mesh": "2x2", "how": "tensor"}),
}


@cache
def outcomes(mode: str) -> list[dict[str, Outcome]]:
    size, name, options = MODES[mode]
    return run_ranks(size, run_all, CELLS, name, options, backend=BACKEND, timeout=300)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_one_process(mode: str, name: str) -> None:
    for rank, every in enumerate(outcomes(mode)):
        assert every[name].equal(1e-12), f"rank {rank}: {every[name]}"


@pytest.mark.parametrize("name", APART)
def test_what_keeps_rows_apart_is_split_all_the_same(name: str) -> None:
    for every in outcomes("data"):
        assert every[name].details["calls"]["M"]["split"] == 8, every[name].details
    for every in outcomes("hybrid --mesh 2x2 --how tensor"):
        calls = every[name].details["calls"]["M"]  # those that are compared are new ways: without operators' word, by their values
        assert calls["split"] + calls["compared"] == 8 and calls["split"] >= 4, every[name].details
    for mode in ("model --micro 4", "hybrid --mesh 2x2 --micro 2"):
        assert not any("whole" in line for every in outcomes(mode) for line in every[name].lines), outcomes(mode)[0][name].lines
