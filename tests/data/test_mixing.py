"""Rows that depend on one another in hidden ways: the call is split only where the result is that of one process."""

from __future__ import annotations

import pytest

from tests.data.mixing import CELLS
from tests.data.test_equality import BACKEND
from tests.equal import Outcome, run_all
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Outcome]]:
    return run_ranks(2, run_all, CELLS, "data", {}, backend=BACKEND, timeout=150)


@pytest.mark.parametrize("name", CELLS)
def test_equal_to_one_process(outcomes: list[dict[str, Outcome]], name: str) -> None:
    for rank, every in enumerate(outcomes):
        assert every[name].equal(1e-12), f"rank {rank}: {every[name]}"
