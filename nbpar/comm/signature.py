"""Ranks in lockstep must call the same collectives: before each, every rank says what it is about to call, and all compare.

    rank 0   all_reduce of 3×3, line 6   ─┐  gathered on a communicator     alike: the collective starts
    rank 1   all_reduce of 3×3, line 8   ─┘  of the group's own             else: CollectiveMismatch on all ranks

So a collective that waits never starts unless it matches. One that does not wait starts at once and is not done before the
signatures have been compared.

A message of a mode goes after a note that says the same of its sender, and which moment of the cell it is; the receiver compares
that with its own. What has no signature: a cell's own messages, and other backends than mpi.
"""

from __future__ import annotations

import math
import struct
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

from ..display.calls import name_call
from ..errors import CollectiveMismatch
from .state import state
from .trace import trace
from .waiting import abort, soon, wait_until

CALL = struct.Struct("<20s16s6i")  # operation, dtype, root, dimensions, their sizes (of more than four, the last is a product)
PLACE = struct.Struct("<iiq")  # line of the cell, whether the cell's own code made the call, else a mode's moment of the cell
SIZE = CALL.size + PLACE.size
NOTE = struct.Struct("<3qi")  # sequence, bytes and moment of a message; line of the cell
DIMENSIONS = 4
MIXED = "The ranks ran different lines, and would have mixed up their values:"
UNEVEN = frozenset({"barrier", "scatter", "gather", "all_to_all"})  # ranks' shapes may differ


@dataclass
class Signed:
    """One collective: what this rank said, what all have said once the request is done."""

    call: int
    mine: bytes
    all: bytearray
    request: MPI.Request | None = None


class Signatures:
    """Of one group. started, alike: how many collectives were signed here, and how many of them proved to be the same."""

    def __init__(self, comm: MPI.Intracomm, ranks: tuple[int, ...]) -> None:
        self.comm, self.ranks = comm, ranks
        self.started = self.alike = 0
        self.pending: deque[Signed] = deque()
        self._known: dict[Any, bytes] = {}
        self._lock = threading.Lock()  # a request may be tested by one thread at a time

    def start(self, call: int, operation: str, shape: tuple[int, ...], dtype: Any, root: int) -> int:
        """Say that this rank calls a collective; its number, for `same`. shape: what all ranks must agree on."""
        key = operation, shape, dtype, root
        what = self._known.get(key)
        if what is None:
            what = self._known[key] = describe(*key)
        line, own = trace.place(call)
        mine = what + PLACE.pack(line, own, 0 if own else state.moment)
        signed = Signed(call, mine, bytearray(SIZE * self.comm.size))
        self.pending.append(signed)
        self.started += 1
        signed.request = self.comm.Iallgather([mine, MPI.BYTE], [signed.all, MPI.BYTE])
        return self.started

    def same(self, number: int) -> bool:
        """Whether the collectives up to this one are known to be the same on all ranks.

        Where they differ this process waits no more: every wait raises CollectiveMismatch until `renew`.
        """
        if self.alike >= number:
            return True
        if self._lock.acquire(blocking=False):
            try:
                self._compare()
            finally:
                self._lock.release()
        return self.alike >= number

    def _compare(self) -> None:
        while self.pending and (first := self.pending[0]).request is not None and first.request.Test():
            if first.all != first.mine * self.comm.size and (said := difference(bytes(first.all), self.ranks, first.call)):
                abort(said, CollectiveMismatch)
                return
            self.pending.popleft()
            self.alike += 1

    def settle(self, call: int) -> None:
        """Until all that was said here is compared. Raises CollectiveMismatch, and PeerFailed after `abort`."""
        number = self.started
        if self.same(number) or soon(lambda: self.same(number)):
            return
        trace.waiting = call
        try:
            wait_until(lambda: self.same(number))
        finally:
            trace.waiting = None

    def under_way(self) -> list[tuple[MPI.Request, Any]]:
        """Requests that are not done, and their buffers."""
        return [(signed.request, signed) for signed in self.pending if signed.request is not None]

    def join_in(self, last: int) -> list[tuple[MPI.Request, Any]]:
        """Take part in those up to number `last` that this rank missed."""
        missed = []
        for _ in range(self.started, last):
            room = bytearray(SIZE * self.comm.size)
            missed.append((self.comm.Iallgather([bytes(SIZE), MPI.BYTE], [room, MPI.BYTE]), room))
        return missed


def describe(operation: str, shape: tuple[int, ...], dtype: Any, root: int) -> bytes:
    """What must be the same on all ranks of a collective, in CALL.size bytes."""
    sizes = [-1] if operation in UNEVEN else [len(shape), *shape[: DIMENSIONS - 1], math.prod(shape[DIMENSIONS - 1 :])]
    sizes = [size & 0x7FFFFFFF if size >= 0 else size for size in sizes] + [0] * (1 + DIMENSIONS - len(sizes))
    name = str(dtype).removeprefix("torch.")
    return CALL.pack(operation.encode()[:20], name.encode()[:16], root, *sizes)


def difference(said: bytes, ranks: tuple[int, ...], call: int) -> str | None:
    """Where ranks called different collectives, in words; None if it is only that a cell's own code did so in different lines."""
    parts = [said[start : start + SIZE] for start in range(0, len(said), SIZE)]
    calls = [part[: CALL.size] for part in parts]
    places = [PLACE.unpack(part[CALL.size :]) for part in parts]
    if len(set(calls)) == 1 and all(own for _, own, _ in places):
        return None
    by_text: dict[str, list[int]] = {}
    dtypes = len({CALL.unpack(what)[1] for what in calls}) > 1
    same_line = len(set(calls)) == 1 and len({line for line, _, _ in places}) == 1
    for rank, what, (line, own, moment) in zip(ranks, calls, places, strict=True):
        named = text(what, trace.sequence(call), (line, own), dtypes) + (after(moment) if same_line else "")
        by_text.setdefault(named, []).append(rank)
    return MIXED + "".join(f"\n  rank {','.join(map(str, found))} was {what}" for what, found in by_text.items())


def after(moment: int) -> str:
    return f", after {moment} operations"


def text(what: bytes, sequence: int, place: tuple[int, int], with_dtype: bool) -> str:
    """'in all_reduce #17 of 3×3, line 6'. place: as in `Trace.place`."""
    line, own = place
    operation, dtype, root, dimensions, *sizes = CALL.unpack(what)
    shape = None if dimensions < 0 else tuple(sizes[:dimensions])
    named = name_call(operation.rstrip(b"\0").decode(), sequence, shape, line, bool(own))
    if with_dtype:
        named += f" ({dtype.rstrip(bytes(1)).decode()})"
    return named if root < 0 else f"{named}, root {root}"


def note(call: int, nbytes: int) -> bytes | None:
    """What a mode's message is preceded by where ranks compare what they call; None for a message of the cell's own.

    nbytes: of the message, in bytes.
    """
    line, own = trace.place(call)
    return None if own else NOTE.pack(trace.sequence(call), nbytes, state.moment, line)


def mixed_up(sent: bytes, awaited: bytes, sender: int, receiver: int) -> str:
    """What is wrong, in words, where a message is not the one that is waited for."""
    lines = MIXED
    notes = [NOTE.unpack(said) for said in (sent, awaited)]
    alike = notes[0][1::2] == notes[1][1::2]
    for rank, operation, (sequence, nbytes, moment, line) in zip((sender, receiver), ("send", "recv"), notes, strict=True):
        lines += f"\n  rank {rank} was {name_call(operation, sequence, (nbytes,), line, own=False)}"
        lines += after(moment) if alike else ""
    return lines
