"""Bring a process into torch.distributed over a world of MPI ranks, and make everything anew after a failure."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from ..display.calls import END
from . import foreign, noted, shortcut
from .buffers import NUMBERS
from .collectives import NOTHING, MPIGroup
from .drain import drain
from .group import AtOnce
from .state import cores, joined, state
from .store import meeting_point
from .trace import trace
from .waiting import SWITCH_INTERVAL

BACKENDS = ("mpi", "gloo", "nccl")
SUM = hash(dist.ReduceOp(dist.ReduceOp.SUM))
SET_UP = "set-up"  # the control group's name in the trace


def join(world: MPI.Intracomm, backend: str = "mpi", address: str = "", folder: str = "") -> None:
    """Make torch.distributed's default group over a duplicate of `world`. Collective over `world`.

    backend: mpi (CUDA tensors go through host memory), or torch's own gloo or nccl, traced where Python calls them.
    address: by which other hosts reach this one, by default its name. folder: for a file by which processes of one host meet, by
    default a new one. After this, `dist.init_process_group("mpi")` and
    `dist.new_group(backend="mpi")` work too.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    take_the_name()
    world = MPI.Intracomm(world)  # the plain class: a subclass may have waits of its own
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    state.crowded, state.spread = host.size > cores(), bool(world.allreduce(host.size < world.size, MPI.LOR))
    host.Free()
    state.threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE
    if not state.spread and backend == "gloo":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
    state.world, state.backend, state.reason = world, backend, None
    state.address, state.folder = address or os.uname().nodename, folder
    state.control = MPIGroup(world.Dup(), (everyone(), 0), SET_UP)
    shortcut.install()
    foreign.install()
    noted.install()
    init_default_group()


def leave() -> None:
    """End torch.distributed and give the communicators back. Collective."""
    shortcut.remove()
    foreign.remove()
    noted.remove()
    if dist.is_initialized():
        dist.destroy_process_group()
    if state.control is not None:
        state.control.shutdown()
    state.world = state.control = state.default = None


def renew() -> None:
    """Make torch.distributed's default group anew, whatever state the last cell left. Collective over the world.

    Operations given up after `abort` are brought to an end first: tensors that they were to fill hold anything.
    """
    from .progress import progress

    world = joined()
    progress.forget_all()
    foreign.cut()
    meeting = world.Dup()
    state.stuck.extend((group.comm, group.live, group.signatures) for group in drain(state.groups, meeting))
    state.groups.clear()
    state.reason, trace.waiting = None, None
    if dist.is_initialized():
        dist.destroy_process_group()
    _created.clear()
    state.control = MPIGroup(meeting, (everyone(), 0), SET_UP)
    init_default_group()


def take_the_name() -> None:
    """Take the place that torch keeps for an MPI backend of its own, which no wheel contains."""
    module: Any = c10d
    module.ProcessGroupMPI, module._MPI_AVAILABLE = MPIGroup, True


def init_default_group() -> None:
    """torch.distributed's default group with the backend joined with."""
    if state.backend == "mpi":
        dist.init_process_group("mpi")
        return
    world = joined()
    state.store = meeting_point(world)
    dist.init_process_group(state.backend, store=state.store, rank=world.rank, world_size=world.size)


_created: Counter[tuple[int, ...]] = Counter()  # groups so far by their ranks, alike on all of them


def everyone() -> tuple[int, ...]:
    return tuple(range(joined().size))


def new_group(ranks: Sequence[int]) -> MPIGroup:
    """A group of these ranks of the world, all if empty; called by them alike.

    MPI makes a communicator in a blocking call, so the ranks first meet in a way that `abort` can end.
    """
    control = state.control
    joined()
    assert control is not None
    members = tuple(ranks) or everyone()
    meet(control, members)
    _created[members] += 1
    if members == everyone():
        comm = control.comm.Dup()
    else:
        group = control.comm.group.Incl(members)
        comm = control.comm.Create_group(group)
        group.Free()
    beside = comm.Dup() if len(members) > 1 else None
    uid = members, _created[members]
    if ranks:
        return MPIGroup(comm, uid, beside=beside)
    if state.default is None:
        state.default = MPIGroup(comm, uid, beside=beside)
    else:
        state.default.take(comm, uid, beside=beside)
    return state.default


def meet(control: MPIGroup, ranks: Sequence[int]) -> None:
    """Return once all these ranks are here: each tells the first, and the first tells each."""
    first, *others = ranks
    if control.me == first:
        for work in [control.recv([NOTHING], rank) for rank in others]:
            work.wait()
        for rank in others:
            control.send([NOTHING], rank).wait()
    else:
        control.send([NOTHING], first).wait()
        control.recv([NOTHING], first).wait()


def watch(on: bool) -> None:
    """Whether ranks compare what they call before each collective of backend mpi. Called by all ranks alike."""
    state.watched = on


@contextmanager
def moment(number: int) -> Iterator[None]:
    """Calls within are of a moment of the cell whose number is alike on all ranks: what is called at another one does not fit."""
    state.moment = number
    try:
        yield
    finally:
        state.moment = 0


def meet_at_end(steps: int = 0) -> None:
    """Return once all ranks are here, at the end of a cell that is watched. steps: of optimisers that this rank has made.

    Raises CollectiveMismatch if a rank is elsewhere or has made another number of steps.
    """
    group = state.default
    if not state.watched or group is None or group not in state.groups:
        return
    call = group.begin(END, NOTHING, 0, opts=AtOnce, alike=(steps,))
    for other in state.groups:
        if other.signatures is not None and other.signatures.pending:
            other.signatures.settle(call)
    trace.drop(call)
    watch(False)


def all_reduce_(tensor: Tensor, average: bool = False) -> Tensor:
    """Sum, or average, a tensor of any shape over the world in place, and return it: `dist.all_reduce` without its preparations."""
    return sum_over(c10d._get_default_group(), tensor, average)


def sum_over(group: Any, tensor: Tensor, average: bool = False) -> Tensor:
    """The same over a group: a tensor of the same shape on each of its ranks."""
    plain = tensor.dtype in NUMBERS and tensor.is_cpu and tensor.is_contiguous()
    if plain and type(group) is MPIGroup and not (average and not tensor.is_floating_point()):
        group.all_reduce_plain(tensor, MPI.SUM, SUM, AtOnce).wait()
        return tensor.div_(group.size_) if average else tensor
    dist.all_reduce(tensor, dist.ReduceOp.AVG if average else dist.ReduceOp.SUM, group)
    return tensor
