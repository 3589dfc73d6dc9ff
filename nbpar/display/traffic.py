"""What ranks said to each other in a cell: their traces joined, so that each call knows when the last rank arrived.

A rank waits in a call from its own arrival until the last rank's (in a receive: until the sender's); the rest of the call is
communication. A send waits for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Column = np.ndarray[Any, Any]
SENDS, RECEIVES = "send", "recv"
TO_ROOT = frozenset({"reduce", "gather"})
DIVIDED = frozenset({"scatter", "reduce_scatter", "all_to_all"})  # each other rank gets a part of what is handed over


@dataclass(frozen=True)
class Traffic:
    """Calls as columns of equal length, in seconds, bytes and ranks of the world; in order of their start.

    rank, peer (root or other side, -1 for none), sequence, bytes (handed over), line, start, end, arrived (when the last rank was
    there); group, operation, dtype and shape are names. Unfinished calls are left out. members: the ranks of each group.
    """

    columns: dict[str, Column]
    members: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.columns["rank"])

    def of(self, rank: int) -> dict[str, Column]:
        mine = self.columns["rank"] == rank
        return {name: column[mine] for name, column in self.columns.items()}

    def blocked(self, rank: int) -> tuple[Column, Column, Column]:
        """(start, arrived, end) of when a rank was in calls; what overlaps counts once, sends do not count."""
        mine = self.of(rank)
        waits = mine["operation"] != SENDS
        start, end, arrived = (mine[name][waits] for name in ("start", "end", "arrived"))
        covered = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]]) if len(end) else end
        start = np.maximum(start, covered)
        some = end > start
        start, end, arrived = start[some], end[some], arrived[some]
        return start, np.clip(arrived, start, end), end

    def shares(self, seconds: Mapping[int, float]) -> tuple[float, float, float]:
        """Mean share of the ranks' time that went into (computing, communicating, waiting). seconds: the cell's, by rank."""
        communicate = wait = 0.0
        for rank in seconds:
            start, arrived, end = self.blocked(rank)
            communicate += float((end - arrived).sum())
            wait += float((arrived - start).sum())
        whole = sum(seconds.values()) or 1.0
        communicate, wait = min(1.0, communicate / whole), min(1.0, wait / whole)
        return max(0.0, 1.0 - communicate - wait), communicate, wait

    @cached_property
    def moved(self) -> int:
        """Bytes that all ranks handed to calls."""
        return int(self.columns["bytes"].sum())

    def matrix(self, size: int) -> Column:
        """(size, size) bytes: how much of what rank r handed over is meant for, or goes into the result of, rank c."""
        total = np.zeros((size, size))
        for rank, group, operation, peer, amount in self._kinds():
            for other, share in self._receivers(rank, group, operation, peer):
                total[rank, other] += amount * share
        return total

    def _kinds(self) -> Iterator[tuple[int, str, str, int, int]]:
        """Bytes by (rank, group, operation, peer)."""
        sums: dict[tuple[int, str, str, int], int] = {}
        names = ("rank", "group", "operation", "peer")
        for *key, amount in zip(*(self.columns[name].tolist() for name in (*names, "bytes")), strict=True):
            sums[tuple(key)] = sums.get(tuple(key), 0) + amount
        for (rank, group, operation, peer), amount in sums.items():
            yield rank, group, operation, peer, amount

    def _receivers(self, rank: int, group: str, operation: str, peer: int) -> Iterator[tuple[int, float]]:
        if operation == RECEIVES:
            return
        if operation == SENDS or operation in TO_ROOT:
            if peer not in (rank, -1):
                yield peer, 1.0
            return
        members = self.members.get(group, [])
        for other in members:
            if other != rank:
                yield other, 1 / len(members) if operation in DIVIDED else 1.0

    def operations(self) -> list[Operation]:
        """Calls of one kind from one line, summed up, the most bytes first. A send and its receive are one."""
        found: dict[tuple[Any, ...], Operation] = {}
        names = ("line", "operation", "group", "dtype", "shape", "peer", "rank", "bytes", "start", "end", "arrived")
        for line, operation, group, dtype, shape, peer, rank, amount, start, end, arrived in zip(
            *(self.columns[name].tolist() for name in names), strict=True
        ):
            name = SENDS if operation == RECEIVES else operation
            one = found.setdefault((line, name, group, dtype), Operation(line, name, group, dtype))
            one.shapes.add(shape)
            one.peers.add((peer, rank) if operation == RECEIVES else (rank, peer))
            if operation != RECEIVES:
                one.calls[rank] = one.calls.get(rank, 0) + 1
            one.bytes += amount
            late = min(max(arrived, start), end)
            if operation != SENDS:
                one.wait += late - start
                one.communicate += end - late
        return sorted(found.values(), key=lambda one: (-one.bytes, -one.communicate - one.wait))

    def frame(self) -> Any:
        """The calls as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.columns)


class Operation:
    """Calls of one kind. calls: by rank; bytes: of all ranks; communicate, wait: seconds of all ranks."""

    def __init__(self, line: int, operation: str, group: str, dtype: str) -> None:
        self.line, self.operation, self.group, self.dtype = line, operation, group, dtype
        self.shapes: set[str] = set()
        self.peers: set[tuple[int, int]] = set()
        self.calls: dict[int, int] = {}
        self.bytes = 0
        self.communicate = self.wait = 0.0


def join(traces: Mapping[int, Mapping[str, Any] | None]) -> Traffic:
    """Traffic from `comm.trace.columns()` by rank; ranks without a trace are left out."""
    given = {rank: columns for rank, columns in traces.items() if columns is not None and len(columns["start"])}
    members: dict[str, list[int]] = {}
    parts: dict[str, list[Column]] = {}
    for rank, columns in given.items():
        members.update(columns["members"])
        done = ~np.isnan(columns["end"])
        rows = {name: columns[name][done] for name in ("sequence", "bytes", "peer", "line", "start", "end")}
        for name in ("group", "operation", "dtype", "shape"):
            rows[name] = np.array(columns[f"{name}_names"], dtype=object)[columns[name][done]]
        rows["rank"] = np.full(int(done.sum()), rank)
        for name, column in rows.items():
            parts.setdefault(name, []).append(column)
    if not parts:
        names = ("rank", "sequence", "bytes", "peer", "line", "start", "end", "group", "operation", "dtype", "shape", "arrived")
        return Traffic({name: np.zeros(0) for name in names}, {})
    joined = {name: np.concatenate(columns) for name, columns in parts.items()}
    order = np.argsort(joined["start"], kind="stable")
    joined = {name: column[order] for name, column in joined.items()}
    return Traffic({**joined, "arrived": _arrivals(joined)}, members)


def _arrivals(columns: Mapping[str, Column]) -> Column:
    """For each call, when the last of its ranks began it."""
    last: dict[Any, float] = {}
    keys = []
    names = ("rank", "group", "operation", "peer", "sequence", "start")
    for rank, group, operation, peer, sequence, start in zip(*(columns[name].tolist() for name in names), strict=True):
        key: Any = (group, sequence)
        if operation == SENDS:
            key = (group, rank, peer, sequence)
        elif operation == RECEIVES:
            key = (group, peer, rank, sequence)
        keys.append(key)
        last[key] = max(start, last.get(key, start))
    return np.array([last[key] for key in keys])
