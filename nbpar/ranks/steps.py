"""Optimiser steps as the places where a lockstep cell can be stopped, or looked at, alike on all ranks.

    kernel                         rank
    hold        ─────────────→     stops at its next step; says how many it has done
    until S     ─────────────→     goes on to step S, the furthest that any rank may be in; there it stops in KeyboardInterrupt,
                                   or takes a snapshot and goes on

No rank passes a step between `hold` and `until`, so all of them act with the same S steps done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Steps:
    """Counts the optimiser steps of the running cell. `hold` and `until` are called by the I/O thread."""

    def __init__(self) -> None:
        self.count = 0
        self._cell = 0
        self._held = 0  # the cell that is to stop at its next step; it may be told so before it begins
        self._target: int | None = None
        self._action = ""
        self._changed = threading.Condition()
        self.watching = False
        self.stopped = False  # here, at the step that the ranks had agreed on

    @contextmanager
    def counted(self, cell: int, watching: bool, snapshot: Callable[[int], None]) -> Iterator[None]:
        """The steps of a cell, seen after the cell's mode has done its part. watching: whether they are the same on all ranks."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._snapshot = snapshot
        with self._changed:
            self._cell, self.count, self.watching, self.stopped = cell, 0, watching, False
        hook = register_optimizer_step_post_hook(self._stepped)
        try:
            yield
        finally:
            self.watching = False
            hook.remove()

    def hold(self, cell: int) -> int:
        """Stop at that cell's next step; how many are done."""
        with self._changed:
            self._held, self._target = cell, None
            return self.count if cell == self._cell else 0

    def until(self, step: int, action: str) -> None:
        with self._changed:
            self._target, self._action = step, action
            self._changed.notify_all()

    def _stepped(self, *_: Any) -> None:
        if not self.watching or threading.current_thread() is not threading.main_thread():
            return
        with self._changed:
            self.count += 1
            if self._held != self._cell:
                return
            while self._target is None:
                self._changed.wait(1)  # SIGINT gets through
            if self.count < self._target:
                return
            self._held = 0
        if self._action == "stop":
            self.watching, self.stopped = False, True
            raise KeyboardInterrupt
        self._snapshot(self.count)
