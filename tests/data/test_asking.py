"""Models that ask something of all rows, choose by a row's own number, or hand objects on."""

from __future__ import annotations

import pytest

from tests.data.asking import CELLS, SPLIT
from tests.data.test_equality import BACKEND
from tests.equal import Outcome, run_all
from tests.ranks import run_ranks


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(request: pytest.FixtureRequest) -> list[dict[str, Outcome]]:
    return run_ranks(request.param, run_all, CELLS, "data", {}, backend=BACKEND, timeout=150)


@pytest.mark.parametrize("name", CELLS)
def test_equal_to_one_process(outcomes: list[dict[str, Outcome]], name: str) -> None:
    for rank, every in enumerate(outcomes):
        assert every[name].equal(1e-12), f"rank {rank}: {every[name]}"


@pytest.mark.parametrize("name", SPLIT)
def test_split(outcomes: list[dict[str, Outcome]], name: str) -> None:
    calls = outcomes[0][name].details["calls"]["M"]
    assert calls.get("split", 0) >= 4, f"{calls}: {outcomes[0][name].lines}"
