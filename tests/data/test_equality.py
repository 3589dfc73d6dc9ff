"""Unchanged cells under `%%parallel data` leave what one process leaves."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.equal import Outcome, run_all
from tests.ranks import run_ranks
from tests.zoo import NOT_SPLIT, ZOO

BACKEND = os.environ.get("NBPAR_TEST_BACKEND", "mpi")


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def outcomes(request: Any) -> list[dict[str, Outcome]]:
    return run_ranks(request.param, run_all, ZOO, "data", {}, backend=BACKEND, timeout=150)


@pytest.mark.parametrize("name", ZOO)
def test_equal_to_one_process(outcomes: list[dict[str, Outcome]], name: str) -> None:
    for rank, every in enumerate(outcomes):
        outcome = every[name]
        assert outcome.equal(ZOO[name].tolerance), f"rank {rank}: {outcome}"
        split = any(counts.keys() & {"split", "compared"} for counts in outcome.details["calls"].values())
        assert split == (name not in NOT_SPLIT), outcome.lines
