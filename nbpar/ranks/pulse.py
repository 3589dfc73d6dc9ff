"""What a rank tells about itself while a cell runs: plain data, taken ten times a second and sent two at a time.

A message wakes half a dozen threads on its way to the page, each with caches that the training has filled; its size hardly counts.
"""

from __future__ import annotations

from typing import NamedTuple

PERIOD = 0.1  # seconds between two pulses
TOGETHER = 2  # pulses in a message


class Pulse(NamedTuple):
    """phase: forward, backward, update, communicate or compute (anything else).

    loops: (items begun, length or 0) of the cell's outermost loop and the one inside it. steps: of optimisers.
    seconds: in the cell. memory, sent: bytes held by the process or on its GPU, and handed to other ranks in this cell.
    busy: share of its time in which it did not wait in a call to other ranks. started: of the cell, on the host's monotonic clock.
    """

    phase: str = "compute"
    loops: tuple[tuple[int, int], ...] = ()
    steps: int = 0
    seconds: float = 0.0
    memory: int = 0
    sent: int = 0
    busy: float = 1.0
    started: float = 0.0

    @property
    def fraction(self) -> float | None:
        """How much of the outermost loop is done, between 0 and 1; None where its length is not known."""
        if not self.loops or not self.loops[0][1]:
            return None
        (outer, length), *inner = self.loops
        part = 0.0
        if inner and inner[0][1]:
            part = max(0, min(inner[0][0], inner[0][1]) - 1) / inner[0][1]
        return min(1.0, (max(0, outer - 1) + part) / length)

    @property
    def rate(self) -> float:
        """Steps a second: of optimisers, else turns of the loop."""
        turns = self.steps or (self.loops[0][0] if self.loops else 0)
        return turns / self.seconds if self.seconds else 0.0
