"""What a rank tells of a running cell, ten times a second, from its I/O thread. The cell's own thread does nothing for it
but count turns of loops and note when phases begin."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from nbpar.ranks.loops import Loops
from nbpar.ranks.phases import NAMES, Phases
from nbpar.ranks.pulse import Pulse

PERIOD = 0.1  # seconds
SILENT = 1.9  # seconds of a cell in which nothing is sent: short cells have no live picture


class Progress:
    """begin and end are called by the main thread, the rest by the I/O thread."""

    def __init__(self, trace: Any) -> None:
        import psutil

        self.loops, self.phases = Loops(), Phases()
        self._trace, self._process = trace, psutil.Process()
        self._lock = threading.Lock()
        self._started: float | None = None

    def begin(self, watched: bool) -> None:
        """A cell begins. watched: whether anybody will look; if not, none of this costs anything."""
        with self._lock:
            self.loops.begin(watched)
            self.phases = Phases()
            self._samples = self._busy = self._sent = self._seen = 0
            self._started = time.perf_counter() if watched else None
            self._next = time.perf_counter() + PERIOD  # a cell shorter than that is not looked at
            self._rows: tuple[int, ...] = ()

    def end(self) -> Pulse | None:
        """How the cell ended; None if it was not watched."""
        with self._lock:
            pulse = self._sample() if self._started is not None else None
            self._started = None
            return pulse

    @property
    def pause(self) -> int:
        """Milliseconds until there may be something to tell. The cell's thread wakes nobody: that would cost short cells most."""
        if self._started is None:
            return int(1000 * PERIOD)
        return max(1, int(1000 * (self._next - time.perf_counter())))

    def pulse(self) -> Pulse | None:
        """What is to be told now, if anything."""
        with self._lock:
            now = time.perf_counter()
            if self._started is None or now < self._next:
                return None
            self._next = now + PERIOD
            try:
                pulse = self._sample()
            except Exception:  # the thread has more to do than this, and the cell's own thread goes on meanwhile
                return None
            return pulse if pulse.seconds > SILENT else None

    def _sample(self) -> Pulse:
        running, waiting = self.phases.running, self._trace.waiting is not None
        phase = "communicate" if waiting else "compute" if running is None else NAMES[running]
        self._samples += 1
        self._busy += not waiting
        moved, self._seen = self._trace.moved(self._seen)
        self._sent += moved
        if (share := split_now()) is not None and sum(share) > sum(self._rows):
            self._rows = share
        assert self._started is not None
        return Pulse(
            phase=phase,
            loops=self.loops.now() or bars(),
            steps=self.phases.updates,
            seconds=time.perf_counter() - self._started,
            memory=self._memory(),
            sent=self._sent,
            busy=self._busy / self._samples,
            started=self._started,
            rows=self._rows,
        )

    def _memory(self) -> int:
        torch = sys.modules.get("torch")
        on_gpu = torch.cuda.memory_allocated() if torch and torch.cuda.is_initialized() else 0
        return on_gpu or self._process.memory_info().rss


def split_now() -> tuple[int, ...] | None:
    """Rows by rank of the batch that mode `data` is splitting at this moment."""
    call = getattr(sys.modules.get("nbpar.parallel.data.context"), "running", None)  # a module may be half imported
    return call.share.sizes if call else None


def bars() -> tuple[tuple[int, int], ...]:
    """The progress bars (tqdm) that are open, outermost first, as (items begun, length)."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    open_bars = sorted(getattr(tqdm, "_instances", ()), key=lambda bar: abs(bar.pos))
    return tuple((bar.n + 1, int(bar.total or 0)) for bar in open_bars)[:2]
