"""mpi4py in cells: the same results as mpi4py's own calls, and waits that end."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.ranks import run_ranks


def results(patient: bool) -> dict[str, Any]:
    """What each call gives on this rank."""
    from mpi4py import MPI

    from nbpar.comm.patient import PatientComm

    comm = PatientComm(MPI.COMM_WORLD) if patient else MPI.COMM_WORLD
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    thing = {"rank": rank, "text": "x" * (10 ** (rank + 1)), "array": np.arange(rank + 3)}
    out: dict[str, Any] = {}
    out["bcast"] = comm.bcast(thing if rank == 1 else None, root=1)
    out["gather"] = comm.gather(thing, root=1)
    out["allgather"] = comm.allgather(thing)
    out["scatter"] = comm.scatter([[rank, i] for i in range(size)] if rank == 0 else None)
    out["alltoall"] = comm.alltoall([f"{rank} to {i}" for i in range(size)])
    out["reduce"] = comm.reduce([rank], root=1)
    out["allreduce"] = (comm.allreduce(rank + 1), comm.allreduce(rank, op=MPI.MAX))
    out["scan"] = (comm.scan(rank + 1), comm.exscan(rank + 1))
    out["sendrecv"] = comm.sendrecv(thing, right, source=left)
    request = comm.isend(thing, right, tag=5)
    status = MPI.Status()
    out["recv"] = (comm.recv(source=MPI.ANY_SOURCE, tag=5, status=status), status.source, status.tag)
    request.wait()
    a, b = np.arange(4.0) + rank, np.zeros(4)
    comm.Allreduce(a, b)
    out["Allreduce"] = b.copy()
    comm.Sendrecv(a, right, recvbuf=b, source=left)
    out["Sendrecv"] = b.copy()
    comm.Bcast(a, root=1)
    out["Bcast"] = a.copy()
    whole = np.zeros((size, 4))
    comm.Allgather(b, whole)
    out["Allgather"] = whole
    request = comm.Irecv(b, left)
    comm.Send(a + rank, right)
    request.Wait()
    out["Irecv"] = b.copy()
    part = comm.Split(rank % 2, rank)
    out["Split"] = (type(part) is type(comm), part.allgather(rank))
    comm.Barrier()
    comm.barrier()
    part.Free()
    return out


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b))


@pytest.mark.parametrize("size", [2, 3])
def test_results_are_mpi4pys_own(size: int) -> None:
    ours, theirs = run_ranks(size, results, True), run_ranks(size, results, False)
    for mine, expected in zip(ours, theirs, strict=True):
        for call, value in expected.items():
            assert same(mine[call], value), call


WAITS = {
    "recv": lambda comm: comm.recv(source=0),
    "Recv": lambda comm: comm.Recv(np.zeros(3), source=0),
    "wait": lambda comm: comm.irecv(source=0).wait(),
    "Wait": lambda comm: comm.Irecv(np.zeros(3), source=0).Wait(),
    "Barrier": lambda comm: comm.Barrier(),
    "allgather": lambda comm: comm.allgather(1),
    "Allreduce": lambda comm: comm.Allreduce(np.zeros(3), np.zeros(3)),
    "Probe": lambda comm: comm.Probe(0),
}


def end_a_wait(name: str) -> float:
    """Seconds from the abort to the exception on rank 1; rank 0 never comes. The communicator is left to itself."""
    from mpi4py import MPI

    from nbpar import comm as nbcomm
    from nbpar.comm.patient import PatientComm
    from nbpar.errors import PeerFailed

    mine = PatientComm(MPI.COMM_WORLD.Dup())
    if mine.rank == 0:
        time.sleep(0.2)
        return 0.0
    at = time.monotonic() + 0.1
    threading.Timer(0.1, nbcomm.abort, ["rank 0 failed"]).start()
    with pytest.raises(PeerFailed, match="rank 0 failed"):
        WAITS[name](mine)
    return time.monotonic() - at


def end_all_waits() -> dict[str, float]:
    from nbpar import comm

    taken = {}
    for name in WAITS:
        taken[name] = end_a_wait(name)
        comm.renew()
    return taken


def test_an_abort_ends_every_wait() -> None:
    taken = run_ranks(2, end_all_waits)[1]
    assert set(taken) == set(WAITS)
