"""A pause of all ranks at the same optimiser step: to stop there, or to take a snapshot and go on.

`hold` reaches each rank's I/O thread, which answers with the steps done so far and lets no further step pass. The furthest rank
decides: all go on to the step after its last one, and do there what the pause is for. See ranks/steps.py for the other side.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbpar.ranks.world import World


class Pause:
    """purpose: "stop", "snapshot", or "" while there is none; agreed: whether the ranks know at which step."""

    def __init__(self, world: World, ranks: Collection[int]) -> None:
        self._world, self._ranks = world, ranks
        self._done: dict[int, int] = {}
        self.purpose, self.agreed = "", False

    def ask(self, purpose: str) -> None:
        self._done, self.purpose, self.agreed = {}, purpose, False
        for rank in self._ranks:
            self._world.tell(rank, "hold", self._world.cell)

    def held(self, rank: int, steps: int) -> None:
        """A rank's answer: steps that it has done."""
        self._done[rank] = steps
        if len(self._done) == len(self._ranks):
            self.agreed = True
            for each in self._ranks:
                self._world.tell(each, "until", (max(self._done.values()) + 1, self.purpose))

    def end(self) -> None:
        self.purpose, self.agreed = "", False
