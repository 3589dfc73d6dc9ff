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


@dataclass(frozen=True)
class Numbers:
    """A tensor."""

    values: Any
    dtype: Any
    shape: tuple[int, ...]


# ---- on the rank ----------------------------------------------------------------------------------------------------------


def taken(error: BaseException, rank: int, is_cell: Callable[[str], bool]) -> PostMortem:
    """The frames of an exception, from that of the cell on. Other ranks may be anywhere: nothing is asked of them."""
    import torch

    walked = dropwhile(lambda part: not is_cell(part[0].f_code.co_filename), walk_tb(error.__traceback__))
    with torch._C.DisableTorchFunction():  # a mode that is on might ask other ranks for values
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
        return pickle.dumps(_plain(value))
    except Exception:  # as of tensors within torch.vmap
        return pickle.dumps(OnRank(type(value).__name__, rank))


def _plain(value: Any, room: int = FEW) -> Any:
    """A small value of a kind that can be taken at once and without running code of its own. Raises TypeError for others."""
    import numpy as np
    import torch

    kind = type(value)
    if kind in (type(None), bool, int, float, complex, torch.Size, torch.dtype, torch.device):
        return value
    if kind in (str, bytes) and len(value) <= SMALL:
        return value
    if kind is np.ndarray and value.nbytes <= SMALL and not value.dtype.hasobject:
        return value
    if kind in (torch.Tensor, torch.nn.Parameter) and value.device.type == "cpu" and value.nbytes <= SMALL:
        return Numbers(value.detach().tolist(), value.dtype, tuple(value.shape))  # modes have their own way of pickling tensors
    if kind is dict and len(value) <= room:
        return {_plain(key, room): _plain(item, room // len(value)) for key, item in value.items()}
    if kind in (list, tuple) and len(value) <= room:
        return kind(_plain(item, room // len(value)) for item in value)
    raise TypeError(kind)


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
        return _whole(pickle.loads(value))
    except Exception as error:
        return error


def _whole(value: Any) -> Any:
    import torch

    if isinstance(value, Numbers):
        return torch.tensor(value.values, dtype=value.dtype).reshape(value.shape)
    if type(value) is dict:
        return {_whole(key): _whole(item) for key, item in value.items()}
    return type(value)(map(_whole, value)) if type(value) in (list, tuple) else value
