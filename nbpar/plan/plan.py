"""The plan of a cell: which rank holds which layer and which rows, and what that will cost. Everything here is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nbpar.errors import OptionError, suggest
from nbpar.plan.figures import Figures, Layer
from nbpar.plan.mesh import SHARDS, Mesh, mesh_of, shares
from nbpar.plan.schedule import SCHEDULES, Span, bubble, kept, simulate

MODES = ("data", "model", "hybrid")
HOWS = ("layers", "tensor")
READS_ROWS = "it reads values of its rows (`.item()`, `if tensor`), so every replica takes all of them"
KINDS = ("weights", "buffers", "gradients", "state", "activations")


@dataclass(frozen=True)
class Plan:
    """owners: the stage of each layer. micro: micro-batches. small: the figures of half the batch, from which others follow.
    columns: where single layers are split (`--how tensor`), each rank's columns by layer; empty for one whole on every rank.

    Predicted: memory, sent, waiting. Without a batch, activations and what passes between stages count as 0.
    """

    mode: str
    mesh: Mesh
    figures: Figures
    owners: tuple[int, ...]
    micro: int = 1
    schedule: str = "gpipe"
    small: Figures | None = field(default=None, repr=False)
    columns: tuple[tuple[int, ...], ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The model's layers in the order of their first call, with their bytes and work."""
        return self.figures.layers

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of the batch by replica."""
        if self.figures.reads_rows:
            return (self.figures.rows,) * self.mesh.data
        return shares(self.figures.rows, self.mesh.data)

    @property
    def cut(self) -> bool:
        """Whether each replica has rows of its own."""
        return self.mesh.data > 1 and not self.figures.reads_rows

    def ranks_of(self, layer: int) -> tuple[int, ...]:
        """The ranks that hold a layer, or columns of it."""
        if self.columns:
            return tuple(range(self.mesh.size))
        return self.mesh.holders(self.owners[layer])

    @cached_property
    def memory(self) -> tuple[dict[str, int], ...]:
        """Bytes by kind (weights, gradients, state, …), for each rank, at the fullest moment of a training step."""
        return tuple(self._memory(*self.mesh.place(rank)) for rank in range(self.mesh.size))

    def _memory(self, replica: int, stage: int) -> dict[str, int]:
        if self.columns:
            return self._columns_memory(replica, stage)
        own = [k for k, owner in enumerate(self.owners) if owner == stage]
        amounts = {kind: sum(getattr(self.layers[k], kind) for k in own) for kind in KINDS if kind != "activations"}
        alive = kept(self.schedule, self.mesh.model, self.micro, stage) if self.micro > 1 else 1.0
        return {**amounts, "activations": round(alive * self._for_rows(replica, lambda figures: self._activations(figures, stage)))}

    def _columns_memory(self, replica: int, rank: int) -> dict[str, int]:
        """Buffers are whole on every rank."""
        amounts: dict[str, float] = dict.fromkeys(KINDS, 0)
        amounts["activations"] = self._for_rows(replica, lambda figures: self._activations(figures, rank))
        for layer, columns in zip(self.layers, self.columns, strict=True):
            share = columns[rank] / sum(columns) if columns else 1.0
            amounts["buffers"] += layer.buffers
            for kind in ("weights", "gradients", "state"):
                amounts[kind] += getattr(layer, kind) * share
        return {kind: round(amount) for kind, amount in amounts.items()}

    def _activations(self, figures: Figures, stage: int) -> int:
        """Bytes kept for the backward pass. A replica's rows of the arguments are a copy."""
        if not self.columns:
            passed = figures.over(self.owners)
            return passed.kept[stage] + (passed.given[stage] if self.cut else 0)
        split = figures.columns.get(self.mesh.model)
        if split is None:
            return 0
        return split.kept.of(stage, self.mesh.model) + (split.given if self.cut else 0)

    def _for_rows(self, replica: int, of: Callable[[Figures], float]) -> float:
        """A figure for a replica's rows: on the line through two measured sizes."""
        whole, rows = of(self.figures), self.rows[replica]
        if self.small is None or rows == self.figures.rows:
            return whole
        return whole - (whole - of(self.small)) / (self.figures.rows - self.small.rows) * (self.figures.rows - rows)

    @cached_property
    def sent(self) -> tuple[int, ...]:
        """Bytes that each rank hands over to others in a training step."""
        return tuple(self._sent(*self.mesh.place(rank)) for rank in range(self.mesh.size))

    def _sent(self, replica: int, stage: int) -> int:
        total = self._for_rows(replica, lambda figures: self._passed(figures, stage))
        if self.cut:
            total += self._memory(replica, stage)["gradients"]
            whole = self.mesh.model == 1 or self.columns
            total += self.figures.output * self.rows[replica] / self.figures.rows if self.figures.rows and whole else 0
        return round(total)

    def _passed(self, figures: Figures, stage: int) -> int:
        """Bytes handed over within a replica."""
        if not self.columns:
            passed = figures.over(self.owners)
            return passed.forward[stage] + passed.backward[stage]
        split = figures.columns.get(self.mesh.model)
        return split.sent.of(stage, self.mesh.model) if split else 0

    @cached_property
    def spans(self) -> list[Span]:
        """A step's time over the stages, in operations: those of the forward pass, and twice as many backward."""
        work = [0.0] * self.mesh.model
        for layer, owner in zip(self.layers, self.owners, strict=True):
            work[owner] += layer.work
        if not any(work):
            return []
        return simulate(self.schedule, work, [2 * amount for amount in work], self.micro)

    @property
    def waiting(self) -> float:
        """The share of a step in which stages wait for each other (the pipeline's bubble), or replicas for the largest share."""
        if self.mesh.model > 1 and not self.columns:
            return bubble(self.spans, self.mesh.model)
        most = max(self.rows, default=0)
        return 1 - sum(self.rows) / (most * len(self.rows)) if most else 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be reckoned, and why."""
        whole = self.mesh.data > 1 and self.figures.reads_rows
        return (*self.figures.notes, *([READS_ROWS] if whole else []))

    def _repr_mimebundle_(self, **_: Any) -> Any:
        from nbpar.display.panels import of_plan

        return of_plan(self).bundle()


def make(
    model: Any,
    batch: Any = None,
    mode: str = "data",
    mesh: Any = None,
    *,
    micro: int = 1,
    schedule: str = "gpipe",
    place: Mapping[str, int] | None = None,
    how: str = "layers",
    optimiser: Any = None,
) -> Plan:
    """What `%%parallel MODE` would do with a model, without starting a rank: a Plan, which a notebook shows as pictures.

    model: may live on the meta device, so billions of parameters take no memory. batch: as the model is called, or (inputs,
    labels); tensors on the meta device will do. mesh: the number of ranks, or "DATAxMODEL". place: a stage by module name.
    how: "layers", or "tensor" to split each layer by its columns. optimiser: whose state counts; Adam is assumed without one.
    Raises OptionError.
    """
    from nbpar.parallel.model.layers import chain
    from nbpar.plan.columns import columns_of
    from nbpar.plan.measure import measure

    if mode not in MODES:
        raise OptionError(f"There is no mode {mode!r} to plan.{suggest(mode, MODES)} Modes: {', '.join(MODES)}.")
    if schedule not in SCHEDULES:
        raise OptionError(f"There is no schedule {schedule!r}.{suggest(schedule, SCHEDULES)} Schedules: {', '.join(SCHEDULES)}.")
    if how not in HOWS:
        raise OptionError(f"how={how!r}: layers are split in one of these ways: {', '.join(HOWS)}.{suggest(how, HOWS)}")
    if micro < 1:
        raise OptionError(f"micro={micro}: at least one micro-batch.")
    chosen = mesh_of(mode, mesh)
    tensor = how == "tensor" and chosen.model > 1
    columns = sorted({*SHARDS, chosen.model}) if tensor else ()
    figures = measure(model, batch, optimiser, columns=columns)
    half = figures.rows // 2
    small = measure(model, batch, optimiser, half, columns) if half and figures.forward.operations else None
    if tensor:
        parts = chain({"": model})
        split = figures.columns.get(chosen.model)
        held = split.layers if split else columns_of(parts, chosen.model)
        return Plan(mode, chosen, figures, (0,) * len(parts), small=small, columns=held)
    return Plan(mode, chosen, figures, stages(model, chosen.model, place or {}), micro, schedule, small)


def stages(model: Any, count: int, place: Mapping[str, int]) -> tuple[int, ...]:
    """The stage of each layer, as `%%parallel model` chooses it."""
    from nbpar.parallel.model.layers import chain, divide, sizes

    layers = chain({"": model})
    return tuple(divide(layers, sizes(layers), count, place)) if count > 1 else (0,) * len(layers)


def divided(figures: Sequence[Layer], count: int) -> tuple[int, ...]:
    """Stages for other numbers of ranks, from the figures alone."""
    from nbpar.plan.partition import partition

    return tuple(partition([float(layer.fixed) for layer in figures], count)) if count > 1 else (0,) * len(figures)
