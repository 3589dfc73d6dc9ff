"""How ranks' values came together in a cell: which operations, who sent what to whom. Measured, from the trace."""

from __future__ import annotations

from nbpar.display.closing import duration, size_of
from nbpar.display.grid import Cell, Grid, level
from nbpar.display.stream import name_ranks
from nbpar.display.traffic import Operation, Traffic

MOST = 20  # operations shown
RESULT = {
    "all_reduce": "same shape on every rank",
    "reduce": "same shape on one rank",
    "broadcast": "same shape on every rank",
    "all_gather": "all ranks' rows on every rank",
    "gather": "all ranks' rows on one rank",
    "reduce_scatter": "a part on each rank",
    "scatter": "a part on each rank",
    "all_to_all": "a part from each rank",
    "send": "same shape on the receiver",
    "barrier": "nothing",
}


def grids(traffic: Traffic, size: int) -> list[Grid]:
    """Bytes rank × rank, and the operations."""
    return [matrix(traffic, size), operations(traffic, size)]


def matrix(traffic: Traffic, size: int) -> Grid:
    """Bytes rank × rank: how much of what a rank handed over went into another's result."""
    amounts = traffic.matrix(size)
    largest = float(amounts.max(initial=0.0))
    wide = size <= 16
    return Grid(
        "aggregation",
        "Whose bytes went into whose results (measured): from the rank at the left to the rank above",
        "from \\ to",
        tuple(f"rank {rank}" for rank in range(size)),
        tuple(f"rank {rank}" if wide else str(rank) for rank in range(size)),
        tuple(
            tuple(
                Cell(level(amounts[r, c], largest), size_of(round(amounts[r, c])) if wide and amounts[r, c] else "")
                for c in range(size)
            )
            for r in range(size)
        ),
        tuple(f"handed over {size_of(int(traffic.of(rank)['bytes'].sum()))}" for rank in range(size)),
        footer=_wire(traffic, size),
        explained=False,
    )


def _wire(traffic: Traffic, size: int) -> str:
    """What goes over the wire is MPI's choice; what the usual one would be."""
    reduced = int(traffic.columns["bytes"][traffic.columns["operation"] == "all_reduce"].sum())
    if not reduced or size < 2:
        return ""
    ring = 2 * (size - 1) / size * reduced / size
    return (
        "all_reduce: each rank's values go into every rank's sum. MPI chooses tree or ring; "
        f"round a ring each rank would send {size_of(round(ring))} (predicted)."
    )


def operations(traffic: Traffic, size: int) -> Grid:
    """Operations by line of the cell: flow, calls, bytes, time."""
    found = traffic.operations()
    shown = found[:MOST]
    rest = len(found) - len(shown)
    return Grid(
        "operations",
        f"How values came together: {len(found)} kinds of operation, {len(traffic)} calls, {size_of(traffic.moved)} handed over",
        "operation",
        tuple(f"{one.operation}{f', line {one.line}' if one.line else ''}" for one in shown),
        ("from → to", "shape", "type", "calls", "bytes", "moving", "waiting"),
        tuple(tuple(Cell("none", text) for text in _described(one, traffic, size)) for one in shown),
        tuple(f"result: {RESULT.get(one.operation, '')}" for one in shown),
        footer=f"and {rest} more kinds that took less time" if rest > 0 else "",
        explained=False,
    )


def _described(one: Operation, traffic: Traffic, size: int) -> tuple[str, ...]:
    ranks = max(1, len(one.calls))
    shapes = sorted(one.shapes)
    return (
        flow(one, traffic.members.get(one.group, list(range(size)))),
        (shapes[0] or "a number") if len(shapes) == 1 else f"{len(shapes)} shapes",
        one.dtype,
        str(max(one.calls.values(), default=0)),
        size_of(one.bytes) if one.bytes else "–",
        duration(one.communicate / ranks),
        duration(one.wait / ranks),
    )


def flow(one: Operation, members: list[int]) -> str:
    """'0-3 → 0-3 summed', '0 → 1-3', '0 → 1, 1 → 2'."""
    everybody = name_ranks(members)
    roots = sorted({peer for _, peer in one.peers if peer >= 0})
    if one.operation == "send":
        pairs = sorted(one.peers)
        return ", ".join(f"{a} → {b}" for a, b in pairs[:4]) + (" …" if len(pairs) > 4 else "")
    if one.operation in ("broadcast", "scatter"):
        return f"{name_ranks(roots)} → {everybody}"
    if one.operation in ("reduce", "gather"):
        return f"{everybody} → {name_ranks(roots)}" + (" summed" if one.operation == "reduce" else "")
    if one.operation == "barrier":
        return f"{everybody} meet"
    return f"{everybody} → {everybody}" + (" summed" if "reduce" in one.operation else "")
