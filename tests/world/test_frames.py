"""Which frames of a traceback a person is shown."""

from __future__ import annotations

import traceback

from nbpar.ranks.frames import hide


def test_frames_without_a_line_are_hidden() -> None:
    """An interrupt may come where the compiler has put no line."""
    lineless = compile("inner()", "<cell>", "exec").replace(co_linetable=b"")
    try:
        exec(lineless, {"__name__": "__main__", "inner": lambda: 1 / 0})
    except ZeroDivisionError as error:
        hide(error)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)]
        assert lines and None not in lines
