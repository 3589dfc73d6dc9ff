"""What a model costs, layer by layer: plain data. measure.py finds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer. parameters: how many; the rest in bytes. activations: kept for the backward pass; work: in operations."""

    name: str
    kind: str
    parameters: int = 0
    weights: int = 0
    buffers: int = 0
    gradients: int = 0
    state: int = 0
    activations: int = 0
    work: float = 0.0

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.buffers + self.gradients + self.state


@dataclass(frozen=True)
class Edge:
    """A tensor made in one layer and used in another (places in the chain)."""

    key: int
    source: int
    target: int
    bytes: int
    differentiable: bool


@dataclass(frozen=True)
class Figures:
    """layers: in the order of registration. rows: of the batch, 0 if there was none. notes: what was assumed or not found."""

    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...] = ()
    rows: int = 0
    output: int = 0  # bytes of the model's result
    notes: tuple[str, ...] = ()
