"""What every call of a collective or point-to-point operation did: the one record that all pictures are read from.

Written into arrays of fixed size, so that a call costs about a microsecond and nothing for the garbage collector.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..display.calls import END, name_call

LIMIT = 1 << 16  # calls kept, a power of two
DEPTH = 200  # frames looked at for the line of the cell

# CLOCK_MONOTONIC on Linux: agrees between the processes of one host. In a lockstep cell the module's own is asked by way of more.
now = time.perf_counter


class Kind(NamedTuple):
    """What calls have in common. nbytes: what this rank hands to the operation.

    peer: the other rank of a point-to-point call, the root of a rooted one (both as ranks of the world), -1 for none.
    """

    group: str
    operation: str
    shape: tuple[int, ...]
    dtype: Any
    nbytes: int
    peer: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A cell's communication on this rank, as far back as calls are kept.

    calls: by operation. bytes: handed to operations. seconds: with at least one call in progress.
    """

    calls: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """One unfinished call. sequence: as in `Trace.columns`. shape: None where there is none to tell. line: of the cell, 0 if
    unknown. seconds: since it started. own: whether the cell's code made it. blocks: whether the main thread waits in it."""

    sequence: int
    group: str
    operation: str
    shape: tuple[int, ...] | None
    dtype: str
    peer: int
    line: int
    seconds: float
    own: bool
    blocks: bool

    def __str__(self) -> str:
        return name_call(self.operation, self.sequence, self.shape, self.line, self.own)


class Trace:
    """The calls of the current cell. Written by any thread, readable from any other."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._mask = limit - 1
        self._kind = array("i", bytes(4 * limit))
        self._line = array("i", bytes(4 * limit))
        self._own = array("b", bytes(limit))  # whether the cell's own code made the call, not a mode of nbpar
        self._sequence = array("q", bytes(8 * limit))
        self._start = array("d", bytes(8 * limit))
        self._end = array("d", bytes(8 * limit))
        self._count = itertools.count()
        self._first = self._next = 0  # the cell's calls are those from _first up to _next
        self._ended = self._looked_at = 0  # all before the first have ended; how far the last look for unfinished ones went
        self._kinds: dict[Any, int] = {}
        self._sequences: dict[Any, int] = {}
        self._belongs: Callable[[str], bool] | None = None
        self._known: dict[str, int] = {}  # OTHER, CELL or MODE by file name
        self.members: dict[str, list[int]] = {}  # ranks of the world, by group
        self._waiting: int | None = None
        self._since = self._waited = 0.0

    def start(self, cell_filenames: Container[str] | Callable[[str], bool] = ()) -> None:
        """Begin a cell. cell_filenames: the code file names that are the user's cell, as a set or a predicate."""
        self._first = self._next = self._ended = self._looked_at = next(self._count) + 1
        self._kinds, self._sequences, self._known = {}, {}, {}
        self._waiting, self._waited = None, 0.0
        if callable(cell_filenames):
            self._belongs = cell_filenames
        else:
            self._belongs = cell_filenames.__contains__ if cell_filenames else None

    def is_cell(self, filename: str) -> bool:
        """Whether code of that file name was typed into a cell."""
        return self._belongs is not None and self._belongs(filename)

    @property
    def waiting(self) -> int | None:
        """The call that the main thread waits in. Only that thread sets it."""
        return self._waiting

    @waiting.setter
    def waiting(self, call: int | None) -> None:
        time = now()
        if self._waiting is not None:
            self._waited += time - self._since
        self._waiting, self._since = call, time

    @property
    def waited(self) -> float:
        """Seconds of the cell that the main thread has waited in calls, up to now. From any thread."""
        return self._waited + (now() - self._since if self._waiting is not None else 0.0)

    def begin(self, group: str, operation: str, tensor: Any, nbytes: int, peer: int = -1) -> int:
        """Record that a call starts now; its number is for `end`. nbytes: in bytes; the others: see `Kind`."""
        key = (group, operation, tensor.shape, tensor.dtype, nbytes, peer)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = len(self._kinds)
        stream = (operation, group, peer) if operation in PAIRED else group
        sequence = self._sequences.get(stream, 0)
        self._sequences[stream] = sequence + 1
        call = next(self._count)
        place = call & self._mask
        self._kind[place], self._sequence[place] = kind, sequence
        self._line[place], self._own[place] = self._from_cell() if self._belongs is not None else (0, 1)
        self._end[place] = 0.0
        self._next = call + 1
        self._start[place] = now()
        return call

    def end(self, call: int) -> None:
        """Record that a call ended now."""
        if self._next - call <= self._mask:
            self._end[call & self._mask] = now()

    def again(self, call: int) -> None:
        """Record that this rank is in the call from now on: it was posted ahead."""
        if self._next - call <= self._mask:
            self._start[call & self._mask] = now()

    def drop(self, call: int) -> None:
        """Forget the newest call."""
        self._next = call

    def place(self, call: int) -> tuple[int, int]:
        """A recent call's line, and 1 if the cell's own code made it, not a mode of nbpar."""
        return self._line[call & self._mask], self._own[call & self._mask]

    def sequence(self, call: int) -> int:
        return self._sequence[call & self._mask]

    def _from_cell(self) -> tuple[int, int]:
        """The line of the innermost frame that belongs to the cell, 0 if there is none; see `place`."""
        known, frame, own = self._known, sys._getframe(2), 1
        for _ in range(DEPTH):
            name = frame.f_code.co_filename
            part = known.get(name)
            if part is None:
                part = known[name] = CELL if self.is_cell(name) else MODE if MODES in name else OTHER
            if part == CELL:
                return frame.f_lineno, own
            if part == MODE:
                own = 0
            if frame.f_back is None:
                break
            frame = frame.f_back
        return 0, own

    @property
    def empty(self) -> bool:
        """Whether the cell has made no call."""
        return self._next == self._first

    def _places(self) -> np.ndarray[Any, Any]:
        """Where the calls still kept are, oldest first."""
        end = self._next
        return np.arange(max(self._first, end - self._mask - 1), end) & self._mask

    def _taken(self, column: array[Any], places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.frombuffer(column, column.typecode)[places]

    def moved(self, since: int) -> tuple[int, int]:
        """Bytes that calls of the cell handed over, from call number `since` on; the number to go on from. From any thread."""
        end, mask, kind = self._next, self._mask, self._kind
        sizes = [key[4] for key in list(self._kinds)]  # a few calls: numpy would take longer
        return sum(sizes[kind[call & mask]] for call in range(max(since, self._first, end - mask - 1), end)), end

    def current(self) -> Call | None:
        """What this rank waits in right now: the call waited for, else the oldest unfinished one, else None.

        A message that was sent and is not waited for holds nobody up; nobody may have looked whether it has left.
        """
        call = waiting = self.waiting
        if call is None:
            call = self._oldest_unfinished()
            if call is None:
                return None
        place = call & self._mask
        kind = Kind(*list(self._kinds)[self._kind[place]])
        return Call(
            self._sequence[place],
            kind.group,
            kind.operation,
            None if kind.operation in SHAPELESS or kind.dtype is None else tuple(kind.shape),
            _name(kind.dtype),
            kind.peer,
            self._line[place],
            now() - self._start[place],
            bool(self._own[place]),
            waiting is not None,
        )

    def _oldest_unfinished(self) -> int | None:
        """Of all but messages sent. Asked every second: what had ended at the look before is not looked at again.

        What has ended at this look is: another thread may have taken an earlier number and be about to begin.
        """
        mask, ends, kind, end = self._mask, self._end, self._kind, self._next
        sends = {number for number, key in enumerate(list(self._kinds)) if key[1] == "send"}
        calls = range(max(self._first, self._ended, end - mask - 1), end)  # a few: numpy would take longer
        oldest = next((call for call in calls if ends[call & mask] == 0.0 and kind[call & mask] not in sends), None)
        self._ended = min(self._looked_at, end if oldest is None else oldest)
        self._looked_at = end
        return oldest

    def begun(self) -> dict[Any, int]:
        """How many calls this rank has begun in the cell, by group, messages by (operation, group, peer)."""
        return dict(self._sequences)

    def summary(self) -> Summary:
        """The cell's communication in three numbers; calls in progress at the same time count once."""
        columns = self.columns()
        calls = Counter(columns["operation_names"][place] for place in columns["operation"].tolist())
        start, end = columns["start"], np.nan_to_num(columns["end"], nan=now())
        covered = np.maximum.accumulate(np.concatenate([[0.0], end]))[:-1] if len(end) else end
        seconds = float(np.maximum(end - np.maximum(start, covered), 0.0).sum())
        return Summary(dict(calls), int(columns["bytes"].sum()), seconds)

    def columns(self) -> dict[str, Any]:
        """The cell's calls as columns, oldest first, ready to be sent; the newest 65536 if there were more.

        group, operation, shape, dtype: int32, an index into the list of strings `<column>_names`.
        sequence: int64. Collectives are counted by group: equal (group, sequence) on two ranks is the same collective.
        Sends and receives are counted by group and peer: the k-th send to a rank is that rank's k-th receive from here.
        bytes: int64, what this rank handed over. peer: int32, see `Kind`. line: int32, in the cell, 0 if unknown.
        start, end: float64 seconds on the host's monotonic clock; end is NaN while a call is unfinished.
        members: the ranks of each group, a dict.
        """
        places = self._places()
        kinds = [Kind(*key) for key in list(self._kinds)]
        of_call = self._taken(self._kind, places)
        columns: dict[str, Any] = {}
        for name in ("group", "operation", "shape", "dtype"):
            index, names = _table([_name(getattr(kind, name)) for kind in kinds])
            columns[name], columns[f"{name}_names"] = index[of_call], names
        columns["bytes"] = np.array([kind.nbytes for kind in kinds], np.int64)[of_call]
        columns["peer"] = np.array([kind.peer for kind in kinds], np.int32)[of_call]
        columns["sequence"] = self._taken(self._sequence, places)
        columns["line"] = self._taken(self._line, places)
        columns["start"] = self._taken(self._start, places)
        ends = self._taken(self._end, places)
        columns["end"] = np.where(ends == 0.0, np.nan, ends)
        columns["members"] = {name: self.members[name] for name in columns["group_names"] if name in self.members}
        return columns


PAIRED = frozenset({"send", "recv"})
SHAPELESS = frozenset({"barrier", END})  # of which `current` tells none
OTHER, CELL, MODE = range(3)  # whose code a frame runs
MODES = os.sep + os.path.join("nbpar", "parallel") + os.sep


def _name(value: Any) -> str:
    """'float32' for torch.float32, '2×3' for a shape, '' for nothing, else the string itself."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return str(value).removeprefix("torch.")


def _table(values: list[str]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Each value's place in the list of distinct values, and that list."""
    places: dict[str, int] = {}
    column = np.array([places.setdefault(value, len(places)) for value in values], np.int32)
    return column, list(places)


trace = Trace()
