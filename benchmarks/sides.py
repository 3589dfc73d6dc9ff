"""nbpar and what it is measured against, each in processes of its own: as nbpar makes its ranks, and as Python leaves them.

What nbpar does to a rank's process (nbpar/heap.py) is a part of nbpar, and a script has it only if its author thought of it. The
sides take turns: while one runs the other sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import RANKS

POLL = 0.005  # seconds between looks of a side that sleeps: a look takes some 10 µs of a core on which the other side may be


def on_two_sides(program: Callable[..., Any], *args: Any, timeout: float) -> tuple[Any, Any]:
    """Runs program(ours, *args) on the ranks of both sides; what rank 0 of each returns, nbpar's first."""
    from tests.ranks import run_ranks

    results = run_ranks(2 * RANKS, enter, program, *args, timeout=timeout)
    return results[0], results[RANKS]


def enter(program: Callable[..., Any], *args: Any) -> Any:
    """On every rank. torch.distributed is then over the ranks of one side: gloo, and by default nbpar's own over MPI."""
    import torch.distributed as dist
    from mpi4py import MPI
    from torch.distributed.distributed_c10d import _update_default_pg

    from nbpar import comm, heap

    ours = MPI.COMM_WORLD.rank < RANKS
    if ours:
        heap.keep()  # as nbpar.ranks does
    comm.leave()
    comm.join(MPI.COMM_WORLD.Split(ours), "gloo")
    gloo = dist.group.WORLD
    _update_default_pg(dist.new_group(backend="mpi"))
    return program(ours, gloo, *args)


def rest() -> None:
    """A barrier of both sides that leaves the cores to others."""
    from mpi4py import MPI

    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(POLL)
