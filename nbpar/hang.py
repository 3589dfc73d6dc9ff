"""Is a cell stuck? Ranks that compute for long are slow; ranks that all wait, but not for each other, are stuck."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbpar.display.calls import name_call
from nbpar.display.stream import name_ranks

STUCK = 10.0  # seconds that every rank must have waited
OPPOSITE = {"send": "recv", "recv": "send"}


@dataclass(frozen=True)
class Wait:
    """The collective or message that a rank waits in. line: of the cell, 0 if unknown; seconds: since it began to wait.

    sequence: None where that is not known.
    own: whether the cell's code made the call. blocks: whether the rank does nothing else. peer: of a message, members: of a
    collective, as ranks of the world; -1 and none where that is not known. begun: how many calls this rank has begun, by group,
    messages by (operation, group, peer).
    """

    group: str
    sequence: int | None
    operation: str
    shape: tuple[int, ...] | None  # None where there is none to tell
    line: int
    seconds: float
    own: bool = True
    blocks: bool = False
    peer: int = -1
    members: Collection[int] = ()
    begun: Mapping[Any, int] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        call = name_call(self.operation, self.sequence, self.shape, self.line, self.own)
        return f"waits {call}, since {self.seconds:.0f} s"


def explain(waits: Mapping[int, Wait | None], left: Collection[int], before: Mapping[int, Wait | None] | None = None) -> str | None:
    """What is wrong, or None if some rank may still move on.

    waits: of each rank in the cell what it waits in, None while it computes; before: at the last look. left: ranks that have
    ended the cell. Where it can be shown that nobody will ever come, no rank has to wait for STUCK.
    """
    calls = {rank: wait for rank, wait in waits.items() if wait}
    if not waits or len(calls) < len(waits):
        return None
    if any(wait.seconds < STUCK for wait in calls.values()) and not deadlocked(calls, before or {}):
        return None
    matched = len({(w.group, w.sequence, w.operation, w.shape) for w in calls.values()}) == 1
    if matched and not left and not any(w.operation in ("send", "recv") for w in calls.values()):
        return None  # one collective that takes its time
    lines = [f"rank {rank} {wait}" for rank, wait in sorted(calls.items())]
    if left:
        lines.append(f"rank {name_ranks(left)} has left the cell")
    return "Ranks wait for each other in calls that do not match:\n  " + "\n  ".join(lines)


def deadlocked(waits: Mapping[int, Wait], before: Mapping[int, Wait | None]) -> bool:
    """Whether each rank has been in one call since the last look, and waits for another one of them that has not come to it."""

    def absent(other: int, key: Any, sequence: int) -> bool:
        return other in waits and waits[other].begun.get(key, 0) <= sequence

    for rank, wait in waits.items():
        last = before.get(rank)
        if (
            not wait.blocks
            or wait.sequence is None
            or last is None
            or (last.group, last.operation, last.sequence) != (wait.group, wait.operation, wait.sequence)
        ):
            return False
        if wait.operation in OPPOSITE:
            stays = absent(wait.peer, (OPPOSITE[wait.operation], wait.group, rank), wait.sequence)
        else:
            stays = any(absent(other, wait.group, wait.sequence) for other in wait.members if other != rank)
        if not stays:
            return False
    return True
