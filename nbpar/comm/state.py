"""The one place where this package keeps state: what the process has joined, and whether it must stop waiting."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NbparError

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(slots=True)
class State:
    """world: the communicator handed to `join`. control: a duplicate for set-up, apart from all user traffic.

    reason: why every wait must end, or None. crowded: this host has more ranks than cores for them.
    """

    world: MPI.Comm | None = None
    control: MPI.Comm | None = None
    backend: str = "mpi"
    reason: str | None = None
    crowded: bool = False


state = State()


def joined() -> MPI.Comm:
    """The world's communicator. Raises NbparError before `join`."""
    if state.world is None:
        raise NbparError("this process is in no world; call nbpar.comm.join(MPI.COMM_WORLD) first")
    return state.world


def control() -> MPI.Comm:
    """The communicator for set-up. Raises NbparError before `join`."""
    joined()
    assert state.control is not None
    return state.control


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
