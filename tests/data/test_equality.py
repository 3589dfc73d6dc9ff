"""Unchanged cells under `%%parallel data` leave what one process leaves."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.data.compare import Outcome, run_all
from tests.data.zoo import CELLS
from tests.ranks import run_ranks

BACKEND = os.environ.get("NBPAR_TEST_BACKEND", "mpi")


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def outcomes(request: Any) -> list[dict[str, Outcome]]:
    return run_ranks(request.param, run_all, list(CELLS), backend=BACKEND, timeout=150)


@pytest.mark.parametrize("name", CELLS)
def test_equal_to_one_process(outcomes: list[dict[str, Outcome]], name: str) -> None:
    cell = CELLS[name]
    for rank, every in enumerate(outcomes):
        outcome = every[name]
        assert not outcome.error, f"rank {rank}:\n{outcome.error}"
        assert outcome.largest <= cell.tolerance, f"rank {rank}: {outcome.at} differs by {outcome.largest:.1e}; {outcome.lines}"
        assert outcome.printed[0] == outcome.printed[1]
        split = sum(counts.get("split", 0) for counts in outcome.details["calls"].values())
        assert bool(split) == cell.split, outcome.lines
