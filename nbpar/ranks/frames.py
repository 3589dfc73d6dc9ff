"""Which frames of a traceback a person is shown: the cell's, and those of what it calls; not those of what nbpar puts around it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

OWN = frozenset({"nbpar"})
LIBRARY = frozenset({"nbpar", "torch"})


def hide(error: BaseException, *, ended: bool = False) -> None:
    """Takes frames out of the traceback of an error, and of those that led to it.

    ended: what was under way was ended from outside. Where in torch that met a cell tells nothing about the cell, and IPython would
    read torch's long files for it, for half a second.
    """
    hidden = LIBRARY if ended else OWN
    for each in _chain(error):
        each.__traceback__ = _without(each.__traceback__, hidden) or each.__traceback__


def _without(tb: TracebackType | None, packages: frozenset[str]) -> TracebackType | None:
    kept = [part for part in _parts(tb) if str(part.tb_frame.f_globals.get("__name__")).partition(".")[0] not in packages]
    shown: TracebackType | None = None
    for part in reversed(kept):
        shown = TracebackType(shown, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return shown


def _parts(tb: TracebackType | None) -> Iterator[TracebackType]:
    while tb is not None:
        if tb.tb_lineno is not None:  # an interrupt may come where the compiler has put no line, and IPython cannot show that
            yield tb
        tb = tb.tb_next


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    todo = [error]
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            todo += [each.__cause__, each.__context__]
