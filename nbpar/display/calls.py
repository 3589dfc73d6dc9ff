"""How a call to other ranks is named in a sentence."""

from __future__ import annotations

END = "the end of the cell"  # where ranks meet, no call of anybody's


def name_call(operation: str, sequence: int | None, shape: tuple[int, ...] | None, line: int, own: bool = True) -> str:
    """'in all_reduce #17 of 3×3, line 6'. sequence, shape: None where there is none to tell; line: of the cell, 0 if
    unknown.

    Of END the shape is the number of optimiser steps. own: whether the cell's code made the call: modes of nbpar call some when
    its last line has been run.
    """
    if operation == END:
        return f"at {END}" + (f", after {shape[0]} optimiser steps" if shape and shape[0] else "")
    size = "" if shape is None else f" of {'×'.join(map(str, shape)) or 'a number'}"
    place = f", line {line}" if line else "" if own else f", at {END}"
    number = "" if sequence is None else f" #{sequence}"
    return f"in {operation}{number}{size}{place}"
