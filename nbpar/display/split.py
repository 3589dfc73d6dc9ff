"""The split as grids: layers × ranks, rows of the batch × ranks, memory × ranks, and the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from nbpar.display.closing import size_of
from nbpar.display.grid import NOTHING, Cell, Grid, joined, level
from nbpar.display.stream import name_ranks
from nbpar.plan.plan import KINDS, Plan

MOST_ROWS = 40
WORDS = {
    "weights": "weights",
    "buffers": "buffers",
    "gradients": "gradients",
    "state": "optimiser state",
    "activations": "activations",
}


@dataclass(frozen=True)
class Held:
    """Layers that are drawn as one row. parameters: how many; bytes: of weights and buffers. columns: how many each rank holds."""

    name: str
    ranks: tuple[int, ...]
    parameters: int
    bytes: int
    count: int = 1
    kind: str = ""
    columns: tuple[int, ...] = ()


def split(plan: Plan) -> list[Grid]:
    """What a plan says about who holds what, the first grid the most telling one."""
    held = [
        Held(layer.name, plan.ranks_of(k), layer.parameters, layer.weights + layer.buffers, kind=layer.kind, columns=columns)
        for k, (layer, columns) in enumerate(zip(plan.layers, plan.columns or ((),) * len(plan.layers), strict=True))
    ]
    grids = [layers(held, plan.mesh.size, _axes(plan))]
    if plan.figures.rows:
        grids.append(rows(plan))
    if plan.mesh.data > 1 and plan.mesh.model > 1:
        grids.append(mesh(plan))
    return grids


def _axes(plan: Plan) -> str:
    data, model = plan.mesh.data, plan.mesh.model
    if plan.columns:
        return f"the columns of each over {model} ranks"
    if model == 1:
        return f"each of {data} ranks has a replica" if data > 1 else "one rank has all"
    stages = f"{model} stages of layers"
    return f"{stages}, each on {data} ranks" if data > 1 else f"{stages}, one a rank"


def layers(held: Sequence[Held], ranks: int, how: str) -> Grid:
    """Layers × ranks. Where there are many layers, neighbours on the same ranks share a row."""
    total = sum(layer.parameters for layer in held)
    shown = fold(held, MOST_ROWS)
    cells = tuple(tuple(_held(row, rank) for rank in range(ranks)) for row in shown)
    return Grid(
        "split",
        f"Who holds which layer: {count_of(len(held), 'layer')}, {number(total)} parameters; {how}",
        "layer \\ rank",
        tuple(row.name + (f" ({row.count} layers)" if row.count > 1 else "") for row in shown),
        tuple(map(str, range(ranks))),
        cells,
        tuple(f"{row.kind}{', ' if row.kind else ''}{number(row.parameters)} parameters, {size_of(row.bytes)}" for row in shown),
    )


def _held(row: Held, rank: int) -> Cell:
    if row.columns:
        return Cell("part", label=count_of(row.columns[rank % len(row.columns)], "column") if row.count == 1 else "columns of each")
    if rank not in row.ranks:
        return NOTHING
    return Cell("replica" if len(row.ranks) > 1 else "own")


def fold(held: Sequence[Held], most: int) -> list[Held]:
    """Neighbours with the same ranks and the same beginning of their names joined, until there are at most so many rows."""
    deepest = max((layer.name.count(".") for layer in held), default=0) + 1
    folded = list(held)
    for depth in range(deepest, -1, -1):
        if len(folded) <= most:
            break
        folded = [
            _join(list(group), depth)
            for _, group in groupby(held, key=lambda layer, d=depth: (layer.ranks, bool(layer.columns), layer.name.split(".")[:d]))  # type: ignore[misc]
        ]
    return folded


def _join(group: list[Held], depth: int) -> Held:
    if len(group) == 1:
        return group[0]
    prefix = ".".join(group[0].name.split(".")[:depth])
    name = prefix or f"{group[0].name} … {group[-1].name}"
    return Held(
        name,
        group[0].ranks,
        sum(h.parameters for h in group),
        sum(h.bytes for h in group),
        sum(h.count for h in group),
        columns=group[0].columns,
    )


def rows(plan: Plan) -> Grid:
    """Rows of the batch × ranks."""
    names, cells, first = [], [], 0
    for replica, count in enumerate(plan.rows if plan.cut else plan.rows[:1]):
        names.append(f"{first}–{first + count - 1}" if count > 1 else str(first) if count else "none")
        cells.append(
            tuple(
                Cell("rows") if count and (not plan.cut or plan.mesh.place(rank)[0] == replica) else NOTHING
                for rank in range(plan.mesh.size)
            )
        )
        first += count
    how = "each replica has its own" if plan.cut else "all go through every stage"
    if not plan.cut and (plan.columns or plan.mesh.data > 1):
        how = "every rank takes all of them"
    if plan.micro > 1:
        how += f", in {plan.micro} micro-batches"
    return Grid(
        "rows",
        f"Which rows of the batch go where: {count_of(plan.figures.rows, 'row')}; {how}",
        "rows \\ rank",
        tuple(names),
        tuple(map(str, range(plan.mesh.size))),
        tuple(cells),
        tuple(count_of(count, "row") for count in plan.rows[: len(names)]),
    )


def mesh(plan: Plan) -> Grid:
    """Replicas × stages, or shards, a rank in each cell."""
    part, whole = ("shard", "shard of each layer") if plan.columns else ("stage", "stage of the layers")
    return Grid(
        "mesh",
        f"The mesh {plan.mesh}: ranks by replica of the batch (down) and {whole} (across)",
        f"replica \\ {part}",
        tuple(f"replica {replica}" for replica in range(plan.mesh.data)),
        tuple(f"{part} {k}" for k in range(plan.mesh.model)),
        tuple(
            tuple(Cell("level1", f"rank {rank}") for rank in range(replica * plan.mesh.model, (replica + 1) * plan.mesh.model))
            for replica in range(plan.mesh.data)
        ),
        explained=False,
    )


def memory(plan: Plan) -> Grid:
    """Predicted bytes: ranks × kinds, ranks with the same amounts in one row."""
    totals = [sum(amounts.values()) for amounts in plan.memory]
    kinds = [kind for kind in KINDS if any(amounts[kind] for amounts in plan.memory)]
    largest = max(max(amounts.values()) for amounts in plan.memory)
    alike: dict[tuple[int, ...], list[int]] = {}
    for rank, amounts in enumerate(plan.memory):
        alike.setdefault(tuple(amounts[kind] for kind in kinds), []).append(rank)
    footer = joined(
        [
            f"predicted: a rank hands over up to {size_of(max(plan.sent))} in a step" if any(plan.sent) else "",
            f"it waits {plan.waiting:.0%} of a step" if plan.mesh.size > 1 and plan.figures.rows else "",
            *plan.notes,
        ]
    )
    return Grid(
        "memory",
        f"Predicted memory of a rank at the fullest moment of a training step: up to {size_of(max(totals))}",
        "rank \\ bytes for",
        tuple(f"rank {name_ranks(ranks)}" for ranks in alike.values()),
        (*(WORDS[kind] for kind in kinds), "sum"),
        tuple(
            (*(Cell(level(amount, largest), size_of(amount)) for amount in amounts), Cell("none", size_of(sum(amounts))))
            for amounts in alike
        ),
        footer=footer,
    )


def number(count: float) -> str:
    """'812', '1.2 K', '7.2 B': a number of parameters."""
    for unit in ("", " K", " M", " B"):
        if count < 1000 or unit == " B":
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError


def count_of(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
