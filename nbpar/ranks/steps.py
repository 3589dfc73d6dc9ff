"""Optimiser steps as the places where a lockstep cell can be stopped alike on all ranks.

    kernel                         rank
    hold        ─────────────→     stops at its next step; says how many it has done
    until S     ─────────────→     goes on to step S, the furthest that any rank may be in, and ends there in KeyboardInterrupt

No rank passes a step between `hold` and `until`, so all of them end with the same S steps done.
"""

from __future__ import annotations

import threading
from typing import Any


class Steps:
    """Counts the optimiser steps of the running cell. `hold` and `until` are called by the I/O thread."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.count = 0
        self._held = False
        self._target: int | None = None
        self._changed = threading.Condition()
        self.watching = False
        register_optimizer_step_post_hook(self._stepped)

    def begin(self, watching: bool) -> None:
        """A cell begins. watching: whether its steps are the same on all ranks."""
        with self._changed:
            self.count, self._held, self._target, self.watching = 0, False, None, watching

    def hold(self) -> int:
        """Stop at the next step; how many are done."""
        with self._changed:
            self._held = True
            return self.count

    def until(self, step: int) -> None:
        with self._changed:
            self._target = step
            self._changed.notify_all()

    def _stepped(self, *_: Any) -> None:
        if not self.watching:
            return
        with self._changed:
            self.count += 1
            if not self._held:
                return
            while self._target is None:
                self._changed.wait(1)  # SIGINT gets through
            if self.count >= self._target:
                self.watching = False
                raise KeyboardInterrupt
