"""Is a cell stuck? Ranks that compute for long are slow; ranks that all wait, but not for each other, are stuck."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nbpar.display.calls import name_call
from nbpar.display.stream import name_ranks

STUCK = 10.0  # seconds that every rank must have waited


@dataclass(frozen=True)
class Wait:
    """The collective or message that a rank waits in. line: of the cell, 0 if unknown; seconds: since it began to wait."""

    group: str
    sequence: int
    operation: str
    shape: tuple[int, ...] | None  # None where there is none to tell
    line: int
    seconds: float

    def __str__(self) -> str:
        return f"waits {name_call(self.operation, self.sequence, self.shape, self.line)}, since {self.seconds:.0f} s"


def explain(waits: Mapping[int, Wait | None], left: Collection[int]) -> str | None:
    """What is wrong, or None if some rank may still move on.

    waits: of each rank in the cell what it waits in, None while it computes. left: ranks that have ended the cell.
    """
    if not waits or any(wait is None or wait.seconds < STUCK for wait in waits.values()):
        return None
    calls = {rank: wait for rank, wait in waits.items() if wait}
    matched = len({(w.group, w.sequence, w.operation, w.shape) for w in calls.values()}) == 1
    if matched and not left and not any(w.operation in ("send", "recv") for w in calls.values()):
        return None  # one collective that takes its time
    lines = [f"rank {rank} {wait}" for rank, wait in sorted(calls.items())]
    if left:
        lines.append(f"rank {name_ranks(left)} has left the cell")
    return "Ranks wait for each other in calls that do not match:\n  " + "\n  ".join(lines)
