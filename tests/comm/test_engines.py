"""Every engine of torch.distributed computes over backend mpi what it computes over gloo."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests.comm.engines import ENGINES, run_all
from tests.ranks import run_ranks


@cache
def results(size: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    with TemporaryDirectory() as folder:
        return run_ranks(size, run_all, folder)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_computes_what_it_computes_over_gloo(engine: str, size: int) -> None:
    for ours, theirs in results(size):
        assert_equal(ours[engine], theirs[engine])


def assert_equal(ours: Any, theirs: Any) -> None:
    """Alike, numbers up to the order of a sum."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
    elif isinstance(ours, float):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    else:
        assert ours == theirs
