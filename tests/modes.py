"""The modes in which a set of cells is tried, each set in one launch of ranks a mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tests.cells import Cell
from tests.equal import Outcome, run_all
from tests.ranks import run_ranks

MODES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "data": (2, "data", {}),
    "model": (2, "model", {}),
    "model, 3 ranks": (3, "model", {}),
    "model --micro 4": (2, "model", {"micro": "4"}),
    "model --how tensor": (2, "model", {"how": "tensor"}),
    "hybrid --mesh 2x2": (4, "hybrid", {"mesh": "2x2"}),
    "hybrid --mesh 2x2 --micro 2": (4, "hybrid", {"mesh": "2x2", "micro": "2"}),
}


def tried(cells: dict[str, Cell]) -> Callable[[str], list[dict[str, Outcome]]]:
    """By mode, and then by rank, what it found of each cell. A mode is run when it is first asked for."""

    @cache
    def outcomes(mode: str) -> list[dict[str, Outcome]]:
        size, name, options = MODES[mode]
        return run_ranks(size, run_all, cells, name, options, timeout=300)

    return outcomes
