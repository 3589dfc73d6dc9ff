"""How an interrupt reaches a rank's main thread, and only the cell that it was meant for."""

from __future__ import annotations

import mmap
import signal
import sys
import threading
from typing import Any

from nbpar.ranks.guard import interrupted

HALF = "torch._dynamo"  # torch imports it at its first optimiser step, takes a second, and cannot do so again after an interrupt
AGAIN = 0.1  # seconds


def importing() -> bool:
    """Whether that import is under way."""
    return getattr(getattr(sys.modules.get(HALF), "__spec__", None), "_initializing", False)


class Interrupt:
    """SIGINT reaches a cell only while the cell that it was meant for runs user code; at any other moment it is void.

    It comes from the I/O thread and from the guard, whichever is first: a C call may keep the one from running, and not all
    systems bring the other's to the main thread.
    """

    def __init__(self, shared: mmap.mmap) -> None:
        self._shared = shared
        self._requested = (0, 0)  # (cell, number of the interrupt)
        self._running: int | None = None
        self._heard = 0
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, _signal: int, _frame: Any) -> None:
        cell, number = max(self._requested, interrupted(self._shared))
        if cell == self._running and number > self._heard:
            if importing():
                threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
                return
            self._heard = number
            raise KeyboardInterrupt

    def request(self, cell: int, number: int) -> None:
        """From the I/O thread: interrupt that cell. number: counts interrupts; each takes effect once."""
        self._requested = cell, number
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    def pending(self, cell: int, number: int) -> bool:
        """Whether the cell runs and has not noticed that interrupt: its thread sits in a C call."""
        return cell == self._running and number > self._heard

    def __call__(self, cell: int) -> Interrupt:
        self._cell = cell
        return self

    def __enter__(self) -> None:
        self._running = self._cell
        try:
            self._handle(signal.SIGINT, None)  # one that came early
        except KeyboardInterrupt:
            self._running = None
            raise

    def __exit__(self, *_: object) -> None:
        self._running = None
