"""Kinds of what belongs to one process: locks, weak references, views of memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbpar.values.kinds import Fixed, Kind

if TYPE_CHECKING:
    from nbpar.values.pickling import Pickler


class WeakrefKind(Fixed):
    def reduce(self, o: Any, pickler: Pickler) -> Any:
        target = o()
        if target is None or o.__callback__ is not None:
            raise TypeError("a weak reference with a callback, or to nothing")
        return weakref.ref, (target,)


class StaysKind(Kind):
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        raise TypeError(self.reason)


class LockKind(Kind):
    """A lock guards what one process does: the other side gets a fresh one."""

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return fresh, (type(o).__name__,)


def fresh(name: str) -> Any:
    return LOCKS[name]()


LOCKS: dict[str, Callable[[], Any]] = {
    type(threading.Lock()).__name__: threading.Lock,
    type(threading.RLock()).__name__: threading.RLock,
    **{cls.__name__: cls for cls in (threading.Event, threading.Condition, threading.Semaphore, threading.local)},
}
LOCK, WEAKREF = LockKind(), WeakrefKind(lambda o: (o(),))
