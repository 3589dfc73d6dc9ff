"""When a rank runs forward, backward and optimiser steps: written down at the few places that every training loop passes.

A module's outermost call is forward, a run of the autograd engine is backward, an optimiser's step is update. Inside a mode these
are the rank's own share: what the mode adds around it (gathering, averaging) is seen in the trace of communication.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter as now  # the clock of comm.trace
from typing import Any

import numpy as np

NAMES = ("forward", "backward", "update")
FORWARD, BACKWARD, UPDATE = range(3)
LIMIT = 1 << 16  # spans kept; later ones are counted only


class Phases:
    """Spans of the current cell. running: the phase that the main thread is in, if it is in one."""

    def __init__(self) -> None:
        self._phase, self._start, self._end = array("b"), array("d"), array("d")
        self._depth = 0
        self.running: int | None = None
        self.updates = 0

    def _add(self, phase: int, start: float) -> None:
        if len(self._phase) < LIMIT:
            self._phase.append(phase)
            self._start.append(start)
            self._end.append(now())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, phases are written down. Entered before the mode, whose own replacements go around these."""
        import torch
        from torch.optim import optimizer as optimizers

        module: Any = torch.nn.Module
        autograd: Any = torch.autograd
        call, engine = module.__call__, autograd._engine_run_backward
        module.__call__ = self._forward(call)
        autograd._engine_run_backward = self._backward(engine)
        hooks = (
            optimizers.register_optimizer_step_pre_hook(self._before_step),
            optimizers.register_optimizer_step_post_hook(self._after_step),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            module.__call__, autograd._engine_run_backward = call, engine
            self.running = None

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(module: Any, *args: Any, **kwargs: Any) -> Any:
            if self._depth or self.running is not None:
                return original(module, *args, **kwargs)
            self._depth, self.running, start = 1, FORWARD, now()
            try:
                return original(module, *args, **kwargs)
            finally:
                self._depth, self.running = 0, None
                self._add(FORWARD, start)

        return __call__

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.running is not None:
                return original(*args, **kwargs)
            self.running, start = BACKWARD, now()
            try:
                return original(*args, **kwargs)
            finally:
                self.running = None
                self._add(BACKWARD, start)

        return run

    def _before_step(self, *_: Any) -> None:
        self.running, self._step = UPDATE, now()

    def _after_step(self, *_: Any) -> None:
        self.running = None
        self.updates += 1
        self._add(UPDATE, self._step)

    def columns(self) -> dict[str, Any] | None:
        """phase: int8, a place in NAMES; start, end: float64 seconds on the clock of comm.trace; in order of their end.

        None if there was no phase.
        """
        if not self._phase:
            return None
        return {
            "phase": np.frombuffer(self._phase, np.int8).copy(),
            "start": np.array(self._start),
            "end": np.array(self._end),
        }
