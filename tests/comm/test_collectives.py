"""Each collective computes what its definition says."""

from __future__ import annotations

from functools import cache

import pytest

from tests.comm.collectives import COLLECTIVES, check
from tests.ranks import run_ranks

EXAMPLES = 40


@cache
def failures(size: int) -> dict[str, str]:
    return run_ranks(size, check, EXAMPLES)[0]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("collective", [collective.__name__ for collective in COLLECTIVES])
def test_collective_meets_its_definition(collective: str, size: int) -> None:
    assert failures(size).get(collective) is None
