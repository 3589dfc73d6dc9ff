"""What a model costs, layer by layer: plain data. measure.py finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from nbpar.plan.mesh import shares
from nbpar.plan.stages import Forward, Stages, over


@dataclass(frozen=True)
class Layer:
    """One layer. parameters: how many; work: in operations of the forward pass; the rest in bytes."""

    name: str
    kind: str
    parameters: int = 0
    weights: int = 0
    buffers: int = 0
    gradients: int = 0
    state: int = 0
    work: float = 0.0

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.buffers + self.gradients + self.state


@dataclass(frozen=True)
class Shared:
    """Bytes of a rank. whole: on every rank alike; split: (columns, bytes of all of them) that ranks share out."""

    whole: int = 0
    split: tuple[tuple[int, int], ...] = ()

    def of(self, rank: int, ranks: int) -> int:
        return self.whole + sum(amount // count * shares(count, ranks)[rank] for count, amount in self.split)


@dataclass(frozen=True)
class Columns:
    """Layers over so many ranks. layers: each rank's columns of each; kept: for the backward pass; sent: in a training step.

    given: bytes of the model's arguments that are kept.
    """

    layers: tuple[tuple[int, ...], ...]
    kept: Shared
    sent: Shared
    given: int


@dataclass(frozen=True)
class Figures:
    """layers: in the order of registration. forward: a pass over them. rows: of the batch, 0 if there was none.

    notes: what was assumed or not found. columns: layers split by their columns, by the number of ranks.
    reads_rows: whether Python reads values of the batch in the pass: no replica can have rows of its own.
    """

    layers: tuple[Layer, ...]
    forward: Forward = field(default_factory=Forward)
    rows: int = 0
    output: int = 0  # bytes of the model's result
    notes: tuple[str, ...] = ()
    columns: Mapping[int, Columns] = field(default_factory=dict)
    reads_rows: bool = False

    @cached_property
    def _over(self) -> dict[tuple[int, ...], Stages]:
        return {}

    def over(self, owners: tuple[int, ...]) -> Stages:
        """The forward pass over stages. owners: of each layer."""
        if owners not in self._over:
            self._over[owners] = over(self.forward, owners)
        return self._over[owners]
