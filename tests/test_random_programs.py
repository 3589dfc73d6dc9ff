"""Under every mode hundreds of random programs give what one process gives, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cells import Cell
from tests.equal import Outcome, run_all
from tests.random_programs import later, program
from tests.ranks import run_ranks


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("ranks", "count", "mode", "options"),
    [
        (2, 100, "data", {}),
        (2, 100, "model", {"micro": 3}),
        (4, 24, "hybrid", {"mesh": "2x2", "micro": 2}),
        (4, 24, "hybrid", {"mesh": "2x2", "how": "tensor"}),
    ],
)
def test_programs_that_mix_rows_later_are_equal_or_refused(ranks: int, count: int, mode: str, options: dict[str, Any]) -> None:
    cells = {str(seed): later(seed) for seed in range(count)}
    found = run_ranks(ranks, run_all, cells, mode, options, timeout=380)
    equal_or_refused(cells, found, 1e-8)  # nine steps, some of which divide by little
    if mode == "data":
        assert sum("split" in outcome.details["calls"]["Model"] for outcome in found[0].values()) > count / 2


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("ranks", "count", "mode", "options"),
    [
        (2, 100, "data", {}),
        (3, 60, "data", {}),
        (2, 60, "model", {}),
        (2, 60, "model", {"micro": 3}),
        (3, 60, "model", {"how": "tensor"}),
        (4, 24, "hybrid", {"mesh": "2x2", "micro": 2}),
    ],
)
def test_random_programs_are_equal_or_refused(ranks: int, count: int, mode: str, options: dict[str, Any]) -> None:
    cells = {str(seed): program(seed) for seed in range(count)}
    found = run_ranks(ranks, run_all, cells, mode, options, timeout=380)
    equal_or_refused(cells, found, 1e-9)
    assert sum(bool(outcome.refused) for outcome in found[0].values()) < count / 4


def equal_or_refused(cells: dict[str, Cell], found: list[dict[str, Outcome]], tolerance: float) -> None:
    wrong = {
        name: (str(outcome), cells[name].setup)
        for result in found
        for name, outcome in result.items()
        if not outcome.refused and not outcome.equal(tolerance)
    }
    assert not wrong, "\n".join(f"program {name}: {what}\n{text}" for name, (what, text) in wrong.items())
