"""Is a call quicker split or whole? Measured on the program itself, from one call to the next, and agreed by all ranks.

A small call is not worth its collectives. Blocks of calls go split and whole in turn; the time of a block holds all that
depends on it: forward, backward, averaging, and what the program does in between. Either way the result is the same.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from nbpar.parallel.data.ranks import Ranks

BLOCK = 4  # calls in a block
BLOCKS = ("split", "whole") * 3
LONG = 0.010  # seconds: a call that takes longer when split is worth it
MARGIN = 0.95  # whole must take less than this part of the time


@dataclass(eq=False)
class Pace:
    """Of calls of one kind. chosen: None while it is measured."""

    chosen: str | None = None
    times: dict[str, list[float]] = field(default_factory=lambda: {"split": [], "whole": []})
    at: int = 0  # which block
    calls: int = 0  # in this block
    began: float = 0.0
    shortest: float = math.inf  # of the split calls themselves, in this block
    steady: bool = False  # the block began in this cell, and nothing else was measured into it

    def way(self, ranks: Ranks) -> str:
        """How the call that begins now is to run. Collective at the end of a block."""
        if self.chosen:
            return self.chosen
        now = time.perf_counter()
        if not self.steady:
            self.began, self.calls, self.shortest, self.steady = now, 0, math.inf, True
        elif self.calls == BLOCK:
            self.times[BLOCKS[self.at]].append(now - self.began)
            self.at += 1
            if self.at == 1 and ranks.largest([self.shortest])[0] > LONG:
                self.chosen = "split"
            elif self.at == len(BLOCKS):
                split, whole = ranks.largest([min(self.times["split"]), min(self.times["whole"])])
                self.chosen = "whole" if whole < MARGIN * split else "split"
                self.times = {"split": [split], "whole": [whole]}
            if self.chosen:
                return self.chosen
            self.began, self.calls, self.shortest = time.perf_counter(), 0, math.inf
        self.calls += 1
        return BLOCKS[self.at]

    def disturb(self) -> None:
        """Something else took time: this block begins again."""
        self.steady = False

    @property
    def reason(self) -> str:
        split, whole = (self.times[way][0] / BLOCK * 1e3 for way in ("split", "whole"))
        return f"that is quicker, as measured ({whole:.2g} ms from call to call, split {split:.2g} ms)"
