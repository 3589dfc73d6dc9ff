"""Bring a process into torch.distributed over a world of MPI ranks, and make everything anew after a failure."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from mpi4py import MPI
from torch.distributed import distributed_c10d as c10d

from .group import MPIGroup
from .state import control, cores, joined, state
from .trace import trace
from .waiting import SWITCH_INTERVAL, wait_until

BACKENDS = ("mpi", "gloo", "nccl")


def join(world: MPI.Comm, backend: str = "mpi") -> None:
    """Make torch.distributed's default group over a duplicate of `world`. Collective over `world`.

    backend: mpi (CUDA tensors go through host memory), or torch's own gloo or nccl.
    After this, `dist.init_process_group("mpi")` and `dist.new_group(backend="mpi")` work too.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    install()
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    state.world, state.control, state.backend, state.reason = world, world.Dup(), backend, None
    state.crowded = host.size > cores()
    host.Free()
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
    _init_default_group()


def install() -> None:
    """Take the place that torch keeps for an MPI backend of its own, which no wheel contains."""
    module: Any = c10d
    module.ProcessGroupMPI, module._MPI_AVAILABLE = MPIGroup, True


def communicator(ranks: Sequence[int]) -> MPI.Comm:
    """A new communicator for these ranks of the world (all if empty), called by them alike.

    MPI makes one in a blocking call, so the ranks first wait for each other in a way that `abort` can end.
    """
    base = control()
    ranks = list(ranks) or list(range(base.size))
    if len(ranks) == base.size and ranks == sorted(ranks):
        wait_until(base.Ibarrier().Test)
        return base.Dup()
    meet(base, ranks)
    members = base.group.Incl(ranks)
    comm = base.Create_group(members)
    members.Free()
    return comm


def meet(base: MPI.Comm, ranks: Sequence[int]) -> None:
    """Return once all these ranks are here."""
    note, others = bytearray(1), [rank for rank in ranks if rank != base.rank]
    requests = [base.Irecv(note, rank) for rank in others] + [base.Isend(b"!", rank) for rank in others]
    wait_until(lambda: MPI.Request.Testall(requests))


def _init_default_group() -> None:
    if state.backend == "mpi":
        dist.init_process_group("mpi")
        return
    world = joined()
    folder = world.bcast(tempfile.mkdtemp(prefix="nbpar-") if world.rank == 0 else None)
    if state.backend == "gloo" and world.size <= cores() * 64 and _one_host(world):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        state.backend, init_method=f"file://{folder}/rendezvous", rank=world.rank, world_size=world.size
    )


def _one_host(world: MPI.Comm) -> bool:
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    size = host.size
    host.Free()
    return size == world.size


def leave() -> None:
    """End torch.distributed and give back the communicators. Collective."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if state.control is not None:
        state.control.Free()
    state.world = state.control = None


def renew() -> None:
    """Make torch.distributed's default group anew, whatever state the last cell left. Collective over the world."""
    state.reason = None
    if dist.is_initialized():
        dist.destroy_process_group()
    old = control()
    state.control = joined().Dup()
    old.Free()
    trace.waiting = None
    _init_default_group()
