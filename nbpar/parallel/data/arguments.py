"""What a call changes of its arguments that are objects: a cache, a list. They would hold a rank's rows only."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

from nbpar.parallel.data.state import CONTAINERS, same_items
from nbpar.parallel.data.structure import CLOSED, PLAIN

MOST = 1000  # objects that are looked at


class Kept(NamedTuple):
    """An object, its items or attributes, a copy of them, and the kind of argument that it hangs on."""

    value: Any
    now: Any
    before: Any
    of: str


class Arguments:
    """All that hangs on some arguments, as it is now; not modules and functions. values: the arguments, flattened."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Iterable[Any]) -> None:
        self.kept: dict[int, Kept] = {}
        todo = [(value, type(value).__name__) for value in (*args, *kwargs.values(), *values)]
        while todo and len(self.kept) < MOST:
            value, of = todo.pop()
            if isinstance(value, (*PLAIN, *CLOSED)) or id(value) in self.kept:
                continue
            inside = value if isinstance(value, (tuple, *CONTAINERS)) else getattr(value, "__dict__", ())
            if isinstance(inside, CONTAINERS):
                self.kept[id(value)] = Kept(value, inside, inside.copy(), of)
            todo += [(item, of) for item in (inside.values() if isinstance(inside, dict) else inside)]

    def put_back(self) -> str:
        """What kind of argument was changed, if one was."""
        changed = [kept for kept in self.kept.values() if not same_items(kept.now, kept.before)]
        for kept in changed:
            kept.now.clear()
            (kept.now.extend if isinstance(kept.now, list | collections.deque) else kept.now.update)(kept.before)
        return changed[0].of if changed else ""
