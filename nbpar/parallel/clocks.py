"""In lockstep all ranks read the clock of rank 0, so that a program that goes by time goes the same way on all of them.

Only where the cell itself reads a clock, or a function of the notebook that it calls: there all ranks are at the same place. Not
in what a library calls, nor once the cell has asked for its rank.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from nbpar.parallel import api
from nbpar.parallel.patch import patched

NAMES = [name + unit for name in ("time", "perf_counter", "monotonic", "process_time", "thread_time") for unit in ("", "_ns")]
HALF = 2**32  # whole numbers of ns are sent in two parts, each exact


@contextmanager
def one_clock(namespace: dict[str, Any]) -> Iterator[None]:
    """While it lasts. namespace: the cell's global variables, among them clocks that were imported by name."""
    clocks, instead = Clocks(namespace), {}
    with ExitStack() as stack:
        for name in NAMES:
            original = getattr(time, name, None)
            if original is not None:  # a system may lack some
                stack.enter_context(patched(time, name, clocks.shared))
                instead[name] = original, getattr(time, name)
        stack.enter_context(patched(api, "asked", clocks.parting))
        stack.enter_context(patched(dist, "get_rank", clocks.telling))
        swap(namespace, instead.values())
        try:
            yield
        finally:
            swap(namespace, [(clock, original) for original, clock in instead.values()])


class Clocks:
    """on: until ranks may part ways."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace, self.process, self.on = namespace, os.getpid(), dist.get_world_size() > 1

    def shared(self, original: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(original)
        def clock() -> Any:
            now = original()
            if not self.on or not self.in_step(sys._getframe(1)):
                return now
            high, low = divmod(now, HALF) if isinstance(now, int) else (now, 0)
            told = torch.tensor([high, low], dtype=torch.float64)
            dist.broadcast(told, 0)
            high, low = told.tolist()
            return int(high) * HALF + int(low) if isinstance(now, int) else high

        return clock

    def in_step(self, frame: FrameType | None) -> bool:
        """Whether it is the cell's own code that asks, and all ranks are at this place."""
        if frame is None or frame.f_globals is not self.namespace:  # most readings are a library's
            return False
        if threading.current_thread() is not threading.main_thread() or os.getpid() != self.process:
            return False
        while frame is not None and frame.f_globals is self.namespace:
            if frame.f_code.co_name == "<module>":
                return True
            frame = frame.f_back
        return False

    def parting(self, asked: Callable[[], None] | None) -> Callable[[], None]:
        def ask() -> None:
            self.on = False
            if asked:
                asked()

        return ask

    def telling(self, original: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(original)
        def get_rank(*args: Any, **kwargs: Any) -> int:
            if sys._getframe(1).f_globals is self.namespace:
                self.on = False
            return original(*args, **kwargs)

        return get_rank


def swap(namespace: dict[str, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Variables that are the one object become the other."""
    instead = {id(old): new for old, new in pairs}
    for name, value in list(namespace.items()):
        if id(value) in instead:
            namespace[name] = instead[id(value)]
