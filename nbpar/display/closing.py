"""The line that ends a cell: ranks, wall time, where the time went, what was moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbpar.run import Record


def line(record: Record) -> str:
    """One line of text for a cell's record."""
    size = len(record.replies)
    parts = [f"{size} rank{'s' if size > 1 else ''}", duration(record.seconds)]
    traffic = {rank: reply.traffic for rank, reply in record.replies.items() if reply.traffic}
    if traffic:
        compute, communicate, wait = shares(traffic, {rank: reply.seconds for rank, reply in record.replies.items()})
        parts.append(f"compute {compute:.0%} · communicate {communicate:.0%} · wait {wait:.0%}")
        calls = max(len(columns["bytes"]) for columns in traffic.values())
        moved = sum(int(columns["bytes"].sum()) for columns in traffic.values())
        parts.append(f"{calls} collective{'s' if calls > 1 else ''}, {size_of(moved)} between ranks")
    if record.bytes_in + record.bytes_out > 1024:
        parts.append(f"variables {size_of(record.bytes_in)} in, {size_of(record.bytes_out)} out")
    return " · ".join([*parts, *(reply_details(record))])


def reply_details(record: Record) -> list[str]:
    """What the mode has to add: short strings under `closing` in its details."""
    return list(next(iter(record.replies.values())).details.get("closing", []))


def shares(traffic: Mapping[int, Mapping[str, Any]], seconds: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean share over the ranks of their time that went into (computing, communicating, waiting for the last rank to come).

    A rank waits in a collective from its own arrival until the last rank's; the rest of the call is communication.
    traffic: `comm.trace.columns()` by rank; seconds: the cell's, by rank.
    """
    last_arrival: dict[tuple[str, int], float] = {}
    calls = {rank: list(_calls(columns)) for rank, columns in traffic.items()}
    for entries in calls.values():
        for key, start, _ in entries:
            last_arrival[key] = max(start, last_arrival.get(key, start))
    totals = [0.0, 0.0]
    for entries in calls.values():
        covered = 0.0
        for key, start, end in sorted(entries, key=lambda entry: entry[1]):
            begin = max(start, covered)  # overlapping calls count once
            arrived = min(max(last_arrival[key], begin), max(end, begin))
            totals[0] += max(0.0, end - arrived)
            totals[1] += arrived - begin
            covered = max(covered, end)
    whole = sum(seconds.values()) or 1.0
    communicate, wait = min(1.0, totals[0] / whole), min(1.0, totals[1] / whole)
    return max(0.0, 1.0 - communicate - wait), communicate, wait


def _calls(columns: Mapping[str, Any]) -> Any:
    """((group, sequence), start, end) of each finished call."""
    names = columns["group_names"]
    for group, sequence, start, end in zip(
        columns["group"].tolist(), columns["sequence"].tolist(), columns["start"].tolist(), columns["end"].tolist(), strict=True
    ):
        if not math.isnan(end):
            yield (names[group], sequence), start, end


def duration(seconds: float) -> str:
    """'3.2 ms', '1.84 s', '2 min 05 s'."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def size_of(count: int) -> str:
    """'812 B', '3.2 MiB'."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError
