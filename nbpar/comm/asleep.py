"""A wait that nothing notes: C++ of torch's own backends, called by C++, as in the backward pass of DistributedDataParallel.

The main thread is in such a call, and has used no processor time since it was looked at before: it waits.
"""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType

from ..hang import Wait
from . import foreign
from .state import state
from .trace import trace

STILL = 1e-3  # seconds of processor time between two looks that are none


class Asleep:
    """Of the main thread, seen from another one."""

    def __init__(self) -> None:
        self._used, self._since = -1.0, 0.0

    def look(self) -> Wait | None:
        """What it waits in, since the first look that found it there and still; None if it moves or is elsewhere."""
        main = threading.main_thread().ident
        if not state.sockets or main is None:
            return None
        used, now = time.clock_gettime(time.pthread_getcpuclockid(main)), time.monotonic()
        operation, line = place(sys._current_frames().get(main))
        if used - self._used > STILL or not operation:  # who slept in Python before has not waited there
            self._used, self._since = used, now
            return None
        return Wait("", None, operation, None, line, now - self._since)


def place(frame: FrameType | None) -> tuple[str, int]:
    """The operation in which C++ was called, empty if Python runs or others were called; the line of the cell."""
    operation = foreign.operation_of(frame.f_code.co_filename, frame.f_code.co_name) if frame else ""
    while operation and frame:
        if trace.is_cell(frame.f_code.co_filename):
            return operation, frame.f_lineno
        frame = frame.f_back
    return operation, 0
