"""The columns of each layer that a rank holds, where single layers are split (`--how tensor`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nbpar.parallel.model.layers import Layer
from nbpar.parallel.tensor.columns import columns
from nbpar.plan.mesh import shares


def columns_of(
    parts: Iterable[Layer], ranks: int, split: Mapping[str, tuple[int, tuple[int, ...]]] | None = None
) -> tuple[tuple[int, ...], ...]:
    """Each rank's columns of each layer, as `--how tensor` splits it, or did; empty for a layer that is whole on every rank."""
    found = []
    for part in parts:
        own = [(key, part.module._parameters.get(key), dim) for key, dim in columns(part.module).items()]
        weights = [(key, value, dim) for key, value, dim in own if value is not None and value.dim() > 1]
        if split is not None:
            found.append(next((split[f"{part.name}.{key}"][1] for key, _, _ in weights if f"{part.name}.{key}" in split), ()))
        else:
            found.append(next((shares(value.shape[dim], ranks) for _, value, dim in weights if value.shape[dim] >= ranks), ()))
    return tuple(found)
