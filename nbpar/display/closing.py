"""The line that ends a cell: ranks, wall time, where the time went, what was moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbpar.display.traffic import join

if TYPE_CHECKING:
    from nbpar.run import Record


def line(record: Record) -> str:
    """One line of text for a cell's record."""
    size = len(record.replies)
    parts = [f"{size} rank{'s' if size > 1 else ''}", duration(record.seconds)]
    traffic = join({rank: reply.traffic for rank, reply in record.replies.items()})
    if len(traffic):
        compute, communicate, wait = traffic.shares({rank: reply.seconds for rank, reply in record.replies.items()})
        parts.append(f"compute {compute:.0%} · communicate {communicate:.0%} · wait {wait:.0%}")
        calls = max(len(traffic.of(rank)["rank"]) for rank in record.replies)
        parts.append(f"{calls} collective{'s' if calls > 1 else ''}, {size_of(traffic.moved)} between ranks")
    if record.bytes_in + record.bytes_out > 1024:
        parts.append(f"variables {size_of(record.bytes_in)} in, {size_of(record.bytes_out)} out")
    details = next(iter(record.replies.values())).details
    if (seconds := details.get("check seconds", 0.0)) > 0.001:
        parts.append(f"checks of first calls {duration(seconds)}, {details.get('check forwards', 0.0):.2g} of a batch's rows")
    if record.start:
        parts.append(f"before it the ranks started, {duration(record.start)}")
    return " · ".join([*parts, *details.get("closing", [])])  # what the mode has to add


def duration(seconds: float) -> str:
    """'80 µs', '3.2 ms', '1.84 s', '2 min 05 s'."""
    if 0 < seconds < 0.0001:
        return f"{seconds * 1e6:.0f} µs"
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
