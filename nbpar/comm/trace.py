"""What every call of a collective or point-to-point operation did: the one record that all pictures are read from."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LIMIT = 1 << 16  # calls kept; older ones are only counted
DEPTH = 200  # frames looked at for the line of the cell

# A record is a list, the cheapest thing to write: see `Trace.columns` for the fields' meaning.
SEQUENCE, GROUP, OPERATION, SHAPE, DTYPE, BYTES, LINE, START, END = range(9)
Record = list[Any]

now = time.perf_counter  # CLOCK_MONOTONIC: agrees between the processes of one host


@dataclass(frozen=True, slots=True)
class Summary:
    """A cell's communication on this rank. bytes: handed to operations; seconds: with at least one call in progress."""

    calls: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as people read it. seconds: since it started."""

    sequence: int
    group: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    line: int
    seconds: float


class Trace:
    """Records of the current cell. Written by any thread, readable from any other."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._records: deque[Record] = deque(maxlen=limit)
        self._sequences: Counter[str] = Counter()
        self._belongs: Callable[[str], bool] | None = None
        self._known: dict[str, bool] = {}
        self.waiting: Record | None = None  # what the main thread waits in

    def start(self, cell_filenames: Container[str] | Callable[[str], bool] = ()) -> None:
        """Begin a cell. cell_filenames: the code file names that are the user's cell, as a set or a predicate."""
        self._records.clear()
        self._sequences.clear()
        self._known = {}
        self.waiting = None
        if callable(cell_filenames):
            self._belongs = cell_filenames
        else:
            self._belongs = cell_filenames.__contains__ if cell_filenames else None

    def begin(self, group: str, operation: str, shape: Any, dtype: Any, nbytes: int) -> Record:
        """A new record, started now. nbytes: what this rank hands to the operation."""
        sequence = self._sequences[group]
        self._sequences[group] = sequence + 1
        line = self._line() if self._belongs is not None else 0
        record = [sequence, group, operation, shape, dtype, nbytes, line, now(), 0.0]
        self._records.append(record)
        return record

    def _line(self) -> int:
        """The line of the innermost frame that belongs to the cell; 0 if there is none."""
        known, frame = self._known, sys._getframe(2)
        for _ in range(DEPTH):
            name = frame.f_code.co_filename
            belongs = known.get(name)
            if belongs is None:
                belongs = known[name] = bool(self._belongs and self._belongs(name))
            if belongs:
                return frame.f_lineno
            if frame.f_back is None:
                return 0
            frame = frame.f_back
        return 0

    def current(self) -> Call | None:
        """What this rank waits in right now: the call waited for, else the oldest unfinished one."""
        record = self.waiting
        if record is None:
            record = next((record for record in list(self._records) if not record[END]), None)
        if record is None:
            return None
        return Call(
            record[SEQUENCE],
            record[GROUP],
            record[OPERATION],
            tuple(record[SHAPE]),
            _name(record[DTYPE]),
            record[LINE],
            now() - record[START],
        )

    def summary(self) -> Summary:
        """Calls by operation, bytes, and the seconds covered by calls (calls in progress together count once)."""
        records = list(self._records)
        seconds = covered = 0.0
        for record in sorted(records, key=lambda record: record[START]):
            end = record[END] or now()
            seconds += max(0.0, end - max(covered, record[START]))
            covered = max(covered, end)
        calls = dict(Counter(record[OPERATION] for record in records))
        return Summary(calls, sum(record[BYTES] for record in records), seconds)

    def columns(self) -> dict[str, Any]:
        """The cell's records as columns, oldest first, ready to be sent.

        sequence: int64, counted by group, so that equal (group, sequence) on two ranks is the same collective.
        group, operation, shape, dtype: int32, an index into the list of strings under `<column>_names`.
        bytes: int64, what this rank handed over. line: int32, in the user's cell, 0 if unknown.
        start, end: float64 seconds on the host's monotonic clock; end is NaN while a call is unfinished.
        """
        records = list(self._records)
        columns: dict[str, Any] = {}
        for name, place in (("group", GROUP), ("operation", OPERATION), ("shape", SHAPE), ("dtype", DTYPE)):
            columns[name], columns[f"{name}_names"] = _table([record[place] for record in records])
        for name, place, kind in (
            ("sequence", SEQUENCE, np.int64),
            ("bytes", BYTES, np.int64),
            ("line", LINE, np.int32),
        ):
            columns[name] = np.array([record[place] for record in records], kind)
        columns["start"] = np.array([record[START] for record in records], np.float64)
        columns["end"] = np.array([record[END] or np.nan for record in records], np.float64)
        return columns


def _name(value: Any) -> str:
    """'float32' for torch.float32, '2×3' for a shape, else the string itself."""
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return str(value).removeprefix("torch.")


def _table(values: list[Any]) -> tuple[np.ndarray[Any, Any], list[str]]:
    places: dict[Any, int] = {}
    column = np.array([places.setdefault(value, len(places)) for value in values], np.int32)
    return column, [_name(value) for value in places]


trace = Trace()
