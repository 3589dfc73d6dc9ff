"""Bring operations that were given up to an end, so that their buffers and communicators can be given back.

MPI cannot cancel a collective that was started. But when the ranks come together afterwards, those that never started it
can still join in, with zeros; receives are cancelled, and messages that nobody wants are received and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from mpi4py import MPI

from .buffers import MPI_OPS, numbers, raw

if TYPE_CHECKING:
    from .group import Group

ROUNDS = 60  # of polling before what is left is given up for good: some 2 s
LONGEST = 40e-3  # seconds of the longest round


class Collective(NamedTuple):
    """A started collective, as a rank that missed it can still join in.

    number: its place among the group's collectives. counts: elements of `dtype`, or bytes, by part. op: its hash.
    """

    number: int
    name: str
    counts: tuple[int, ...]
    dtype: torch.dtype = torch.uint8
    op: int = 0
    root: int = 0


Started = tuple[MPI.Request, Any]  # a request and its buffers
Uid = tuple[tuple[int, ...], int]


def join_in(comm: MPI.Comm, missed: Collective) -> Started:
    """Take part in a collective with zeros."""
    total, op = sum(missed.counts), MPI_OPS.get(missed.op, MPI.SUM)
    here = torch.zeros(total, dtype=missed.dtype)
    mine = torch.zeros(missed.counts[comm.rank % len(missed.counts)] if missed.counts else 0, dtype=missed.dtype)
    match missed.name:
        case "barrier":
            return comm.Ibarrier(), None
        case "broadcast":
            return comm.Ibcast(raw(here), missed.root), here
        case "all_reduce":
            return comm.Iallreduce(MPI.IN_PLACE, numbers(here), op), here
        case "reduce":
            send, receive = (MPI.IN_PLACE, numbers(here)) if comm.rank == missed.root else (numbers(here), None)
            return comm.Ireduce(send, receive, op, missed.root), here
        case "reduce_scatter":
            return comm.Ireduce_scatter(numbers(here), numbers(mine), list(missed.counts), op), (here, mine)
        case "reduce_scatter_equal":
            return comm.Ireduce_scatter_block(numbers(here), numbers(mine), op), (here, mine)
        case "all_gather":
            parts = [*raw(here)[:1], list(missed.counts), MPI.BYTE]
            return comm.Iallgatherv(raw(mine), parts), (here, mine)
        case "all_gather_equal":
            return comm.Iallgather(raw(mine), raw(here)), (here, mine)
    raise AssertionError(missed.name)


def drain(groups: Iterable[Group], meeting: MPI.Intracomm) -> list[Group]:
    """End what is under way on these groups and free their communicators. Collective over `meeting`, the whole world.

    Returns the groups on which something would not end: ranks that called different collectives, say. Their buffers must
    be kept for good.
    """
    mine = {group.uid: group for group in groups}
    reports = meeting.allgather({uid: report(group) for uid, group in mine.items()})
    pending: dict[Uid, list[Started]] = {}
    for uid, group in mine.items():
        cancel([request for work in group.live for request in work.receives])
        said = [reports[rank].get(uid) for rank in uid[0]]
        missed = missed_by(group, said)
        if missed is not None:
            under_way = [(request, work.keep) for work in group.live for request in work.requests]
            pending[uid] = under_way + [join_in(group.comm, collective) for collective in missed]
            if group.signatures is not None:
                last = max(its.signed for its in said if its)
                pending[uid] += group.signatures.under_way() + group.signatures.join_in(last)
    wait_for_all(meeting, [mine[uid] for uid in pending], pending)
    meeting.alltoall([None] * meeting.size)  # pushes messages still on their way ahead of it
    for group in mine.values():
        drop_messages(group.comm)
    over = meeting.allgather({uid for uid, left in pending.items() if not left})
    for uid in sorted(mine):
        if all(uid in over[rank] for rank in uid[0]):
            mine.pop(uid).free()
    return list(mine.values())


class Report(NamedTuple):
    """What a rank tells of a group: collectives started, those that others may have missed, signatures started."""

    started: int
    unfinished: list[Collective]
    signed: int


def report(group: Group) -> Report:
    return Report(group.started, group.unfinished(), group.signatures.started if group.signatures else 0)


def missed_by(group: Group, reports: list[Report | None]) -> list[Collective] | None:
    """The collectives that this rank has yet to join in, in order. None if that cannot be told.

    reports: of the group's ranks, None for one that has destroyed the group.
    """
    known: dict[int, Collective] = {}
    last = group.started
    for its in reports:
        if its is None:
            return None
        last = max(last, its.started)
        known.update({collective.number: collective for collective in its.unfinished})
    places = range(group.started + 1, last + 1)
    return [known[number] for number in places] if all(number in known for number in places) else None


def wait_for_all(meeting: MPI.Intracomm, groups: list[Group], pending: dict[Uid, list[Started]]) -> None:
    """Poll in rounds until no rank has anything pending, or the rounds are over."""
    for turn in range(ROUNDS):
        end = time.perf_counter() + min(LONGEST, 100e-6 * 2**turn)
        while True:
            for group in groups:
                drop_messages(group.comm)
            for uid, left in pending.items():
                pending[uid] = [started for started in left if not ended(started[0])]
            if not any(pending.values()) or time.perf_counter() > end:
                break
        if not meeting.allreduce(sum(map(len, pending.values()))):
            return


def cancel(requests: Iterable[MPI.Request]) -> None:
    for request in requests:
        if request != MPI.REQUEST_NULL:
            request.Cancel()


def ended(request: MPI.Request) -> bool:
    """Whether a request is over, in success or, as after a mismatch, in an error."""
    try:
        return request.Test()
    except MPI.Exception:
        return True


def drop_messages(comm: MPI.Comm) -> None:
    """Receive what has arrived and nobody waits for."""
    status = MPI.Status()
    while (message := comm.Improbe(status=status)) is not None:
        message.Recv([bytearray(status.Get_count(MPI.BYTE)), MPI.BYTE])
