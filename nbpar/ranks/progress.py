"""What a rank tells of a running cell, from its I/O thread: once the kernel has asked, for somebody looks.

The cell's own thread does nothing for it but count turns of loops and note when phases begin. Ranks of one host tell at the same
moments: in lockstep all of them wait for one that was held up, so it is better that all are held up at once.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from typing import Any

from nbpar.ranks.loops import Loops
from nbpar.ranks.phases import NAMES, Phases
from nbpar.ranks.pulse import PERIOD, TOGETHER, Pulse

MEMORY = 1.0  # seconds between two looks at the process's memory


class Progress:
    """begin and end are called by the main thread, the rest by the I/O thread, which sleeps while nobody looks."""

    def __init__(self, trace: Any) -> None:
        import psutil

        self.loops, self.phases = Loops(), Phases()
        self._trace, self._process = trace, psutil.Process()
        self._lock = threading.Lock()
        self._started: float | None = None
        self._cell = self._asked = 0
        self._untold: deque[Pulse] = deque(maxlen=TOGETHER)

    def begin(self, cell: int, watched: bool) -> None:
        """A cell begins. watched: whether anybody may look; if not, none of this costs anything."""
        with self._lock:
            self.loops.begin(watched)
            self.phases = Phases()
            self._untold.clear()
            self._cell, self._sent, self._seen, self._look = cell, 0, 0, 0.0
            self._started = time.perf_counter() if watched else None

    def end(self) -> Pulse | None:
        """How the cell ended; None if it was not watched."""
        with self._lock:
            self._look = 0.0
            pulse = self._sample() if self._started is not None else None
            self._started = None
            return pulse

    def watch(self, cell: int) -> None:
        """Somebody looks at that cell, which may be yet to begin."""
        self._asked = cell
        self._next = moment()

    @property
    def pause(self) -> int | None:
        """Milliseconds until there may be something to tell; None if nobody looks."""
        if self._asked > self._cell or (self._asked == self._cell and self._started is not None):
            return max(0, math.ceil(1000 * (self._next * PERIOD - time.monotonic())))
        return None

    def pulses(self) -> tuple[Pulse, ...]:
        """What is to be told now, oldest first, if anything."""
        if self.pause != 0:
            return ()
        due, self._next = self._next % TOGETHER == 0, moment()
        with self._lock:
            if self._started is None or self._asked != self._cell:
                return ()
            try:
                self._untold.append(self._sample())
            except Exception:  # the thread has more to do than this, and the cell's own thread goes on meanwhile
                return ()
            if not due:
                return ()
            told = tuple(self._untold)
            self._untold.clear()
            return told

    def _sample(self) -> Pulse:
        assert self._started is not None
        now, running = time.perf_counter(), self.phases.running
        phase = "communicate" if self._trace.waiting is not None else "compute" if running is None else NAMES[running]
        moved, self._seen = self._trace.moved(self._seen)
        self._sent += moved
        if now >= self._look:
            self._memory, self._look = self._held(), now + MEMORY
        seconds = now - self._started
        return Pulse(
            phase=phase,
            loops=self.loops.now() or bars(),
            steps=self.phases.updates,
            seconds=seconds,
            memory=self._memory,
            sent=self._sent,
            busy=max(0.0, 1.0 - self._trace.waited / seconds),
            started=self._started,
        )

    def _held(self) -> int:
        torch = sys.modules.get("torch")
        on_gpu = torch.cuda.memory_allocated() if torch and torch.cuda.is_initialized() else 0
        return on_gpu or self._process.memory_info().rss


def moment() -> int:
    """The next time for a pulse, in periods of the host's monotonic clock."""
    return int(time.monotonic() // PERIOD) + 1


def bars() -> tuple[tuple[int, int], ...]:
    """The progress bars (tqdm) that are open, outermost first, as (items begun, length)."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    open_bars = sorted(getattr(tqdm, "_instances", ()), key=lambda bar: abs(bar.pos))
    return tuple((bar.n + 1, int(bar.total or 0)) for bar in open_bars)[:2]
