"""The one place where this package keeps state: what the process has joined, and whether it must stop waiting."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import NbparError, PeerFailed

if TYPE_CHECKING:
    from mpi4py import MPI

    from .group import Group


@dataclass(slots=True)
class State:
    """world: the communicator handed to `join`. control: a group over all of it, for set-up, apart from user traffic.

    default: the group of the whole world, one object for good: whoever holds it can go on after `renew`.
    groups: those whose communicators are not freed. stuck: communicators and works that never end; MPI has the buffers.
    reason: why every wait must end, or None; error: in which exception. watched: whether collectives are signed.
    moment: what a mode counts alike on all ranks, to tell one message from another.
    crowded: this host has more ranks than cores for them. spread: there are several hosts; address: by which they reach this one;
    folder: where processes of one host may meet.
    lent: who waits leaves its core to those that work.
    threaded: MPI may be called by several threads at a time. sockets: of torch's own backends, by device and inode;
    store: by which these find each other; C++ keeps no reference.
    """

    world: MPI.Intracomm | None = None
    control: Group | None = None
    default: Group | None = None
    groups: list[Group] = field(default_factory=list)
    stuck: list[tuple[Any, ...]] = field(default_factory=list)
    backend: str = "mpi"
    reason: str | None = None
    error: type[NbparError] = PeerFailed
    watched: bool = False
    moment: int = 0
    crowded: bool = False
    lent: bool = False
    spread: bool = False
    address: str = ""
    folder: str = ""
    threaded: bool = True
    store: Any = None
    sockets: set[tuple[int, int]] = field(default_factory=set)


state = State()


def joined() -> MPI.Intracomm:
    """The world's communicator. Raises NbparError before `join`."""
    if state.world is None:
        raise NbparError("this process is in no world; call nbpar.comm.join(MPI.COMM_WORLD) first")
    return state.world


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
