"""What `%debug` opens after a cell failed: the rank's frames, taken there and rebuilt in the notebook.

A rank sends where each frame stood and the small values of its variables. In the notebook each becomes a frame of its own, by
running a line that raises the error in a code object of that name, file and line (Jinja2's way with templates' tracebacks). The
frame of the cell itself has the notebook's variables.
"""

from __future__ import annotations

import linecache
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Any

MOST = 20  # frames from each end of a deep recursion
SMALL = 1 << 16  # bytes, of a value that travels
FEW = 100  # variables of a frame


@dataclass(frozen=True)
class Frame:
    """Where a rank's frame stood. first: the line at which its function begins. values: its variables, pickled one by one."""

    filename: str
    line: int
    name: str
    first: int
    module: str
    values: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class PostMortem:
    """An exception's frames, from the cell's on. sources: of the files that only the rank has."""

    rank: int
    frames: Sequence[Frame] = ()
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, repr=False)
class OnRank:
    """In the place of a variable's value that did not travel: too large, or of a kind that is not looked into."""

    kind: str
    rank: int

    def __repr__(self) -> str:
        return f"<{self.kind} on rank {self.rank}>"


# ---- on the rank ----------------------------------------------------------------------------------------------------------


def taken(error: BaseException, rank: int, is_cell: Callable[[str], bool]) -> PostMortem:
    """The frames of an exception, from that of the cell on."""
    walked = dropwhile(lambda part: not is_cell(part[0].f_code.co_filename), walk_tb(error.__traceback__))
    frames = [_frame(frame, line, rank) for frame, line in _ends(list(walked))]
    files = {frame.filename for frame in frames if is_cell(frame.filename)}
    return PostMortem(rank, frames, {name: "".join(linecache.getlines(name)) for name in files})


def _ends(parts: list[Any]) -> list[Any]:
    return parts if len(parts) <= 2 * MOST else parts[:MOST] + parts[-MOST:]


def _frame(frame: FrameType, line: int, rank: int) -> Frame:
    code = frame.f_code
    local = {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)
    values = {name: _pickled(value, rank) for name, value in list(local.items())[:FEW]}
    return Frame(code.co_filename, line, code.co_name, code.co_firstlineno, str(frame.f_globals.get("__name__")), values)


def _pickled(value: Any, rank: int) -> bytes:
    try:
        if _small(value):
            return pickle.dumps(value.detach() if hasattr(value, "detach") else value)
    except Exception:  # as tensors within torch.vmap: it says where it is instead
        pass
    return pickle.dumps(OnRank(type(value).__name__, rank))


def _small(value: Any, room: int = FEW) -> bool:
    """Whether a value is plain and small: only then it can be taken at once and without running code of its own."""
    import numpy as np
    import torch

    kind = type(value)
    if kind in (str, bytes):
        return len(value) <= SMALL
    if kind in (type(None), bool, int, float, complex, torch.Size, torch.dtype, torch.device):
        return True
    if kind in (torch.Tensor, torch.nn.Parameter):
        return bool(value.device.type == "cpu" and value.layout is torch.strided and value.nbytes <= SMALL)
    if kind is np.ndarray:
        return bool(value.nbytes <= SMALL and value.dtype.hasobject is False)
    if kind is dict:
        return _small([*value, *value.values()], room)
    return kind in (list, tuple) and len(value) <= room and all(_small(item, room // len(value)) for item in value)


# ---- in the notebook ------------------------------------------------------------------------------------------------------


def rebuilt(error: BaseException, found: PostMortem | None, namespace: dict[str, Any]) -> TracebackType | None:
    """A traceback through frames like those of the rank; None if there are none. namespace: the notebook's."""
    if found is None:
        return None
    for name, source in found.sources.items():
        if name not in linecache.cache:
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    parts = [_raised(error, frame, namespace) for frame in found.frames]
    chained: TracebackType | None = None
    for part in reversed(parts):
        chained = TracebackType(chained, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return chained


def _raised(error: BaseException, frame: Frame, namespace: dict[str, Any]) -> TracebackType:
    """The traceback of a frame that raises the error where the rank's did."""
    raiser = compile("\n" * (frame.line - frame.first) + "raise 'error'", frame.filename, "exec")
    consts = tuple(error if const == "error" else const for const in raiser.co_consts)
    code = raiser.replace(co_name=frame.name, co_firstlineno=frame.first, co_consts=consts)
    around = namespace if frame.module == "__main__" else vars(sys.modules.get(frame.module, sys.modules["builtins"]))
    own = around if frame.name == "<module>" else {name: _loaded(value) for name, value in frame.values.items()}
    try:
        exec(code, around, own)
    except BaseException as raised:
        assert raised.__traceback__ is not None and raised.__traceback__.tb_next is not None
        return raised.__traceback__.tb_next
    raise AssertionError


def _loaded(value: bytes) -> Any:
    try:
        return pickle.loads(value)
    except Exception as error:
        return error
