"""The plan of a cell as its notebook shows it: which models it reads, who holds their layers, which batch it may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nbpar.errors import OptionError, suggest
from nbpar.parallel.model.layers import chain, divide, roots, sizes
from nbpar.parallel.model.reach import reach
from nbpar.plan.columns import columns_of
from nbpar.plan.figures import Figures
from nbpar.plan.measure import fixed, measure
from nbpar.plan.mesh import Mesh, mesh_of
from nbpar.plan.plan import Plan, make

MOST = 10_000  # objects looked at
Held = TypeVar("Held")


def outline(
    values: Mapping[str, Any],
    mode: str,
    ranks: int,
    options: Mapping[str, Any],
    *,
    placed: Mapping[str, int] | None = None,
    split: Mapping[str, tuple[int, tuple[int, ...]]] | None = None,
    rows: int = 0,
    full: bool = False,
) -> Plan | None:
    """Layers and their ranks for the models that a cell reads; None if it reads none or its mode splits nothing.

    values: what the cell reads, by name. placed: where ranks say that layers are; split: how they say that parameters are split.
    rows: of the batch, where they are known.
    full: with work and activations too, for which a model is run on a batch that the notebook holds, without values.
    """
    found = models(values)
    mesh = mesh_for(mode, ranks, options)
    if mesh is None or not found:
        return None
    parts = chain(found)
    owners = (0,) * len(parts)
    if mesh.model > 1:
        places = options.get("place") or {}
        chosen = divide(parts, sizes(parts), mesh.model, places if isinstance(places, Mapping) else {})
        owners = tuple((placed or {}).get(part.name, owner) for part, owner in zip(parts, chosen, strict=True))
    alone = f"{next(iter(found))}." if len(found) == 1 else ""
    figures = Figures(fixed(parts, without=alone), rows=rows or loader_rows(values.values()))
    if full and alone and (batch := batch_of(values)) is not None:
        model = next(iter(found.values()))
        figures = measure(model, batch, optimiser_of(model, values), rows=figures.rows or None)
    held = columns_of(parts, mesh.model, split) if options.get("how") == "tensor" and mesh.model > 1 else ()
    return Plan(mode, mesh, figures, owners, int(options.get("micro") or 1), columns=held)


def mesh_for(mode: str, ranks: int, options: Mapping[str, Any]) -> Mesh | None:
    if mode == "hybrid":
        return mesh_of(mode, options.get("mesh") or f"{max(1, ranks // 2)}x2")
    return {"data": Mesh(ranks, 1), "model": Mesh(1, ranks)}.get(mode)


def loader_rows(values: Iterable[Any]) -> int:
    """The batch size of the first DataLoader."""
    return next((value.batch_size for value in values if isinstance(value, DataLoader) and value.batch_size), 0)


def batch_of(values: Mapping[str, Any], names: Iterable[str] = ()) -> Any:
    """A batch to plan with: the tensors named, else what a DataLoader would give first, else a tensor. None if there is none."""
    given = [values[name] for name in names if name in values]
    if given:
        return tuple(given)
    for value in values.values():
        if isinstance(value, DataLoader) and value.batch_size and hasattr(value.dataset, "__len__"):
            with torch.random.fork_rng(devices=()):
                count = min(value.batch_size, len(value.dataset))
                return value.collate_fn([value.dataset[k] for k in range(count)])
    tensors = [
        value for value in values.values() if isinstance(value, Tensor) and value.dim() > 1 and not isinstance(value, nn.Parameter)
    ]
    return tensors[0] if tensors else None


def of_notebook(
    namespace: Mapping[str, Any],
    *,
    mode: str = "data",
    size: int | None = None,
    mesh: str | None = None,
    model: str | None = None,
    batch: Iterable[str] = (),
    **options: Any,
) -> Plan:
    """The plan of a notebook's model: the one named, else the largest. What `%parallel plan` shows. Raises OptionError."""
    own = {name: value for name, value in namespace.items() if not name.startswith("_")}
    found = models(own)
    if model is not None and not isinstance(own.get(model), nn.Module):
        raise OptionError(f"--model {model}: the notebook has no model of that name.{suggest(model, found)}")
    if not found and model is None:
        raise OptionError("%parallel plan: the notebook has no model yet. Make one first, or use nbpar.plan(model, batch).")
    chosen = own[model] if model else max(found.values(), key=lambda one: sum(p.numel() for p in one.parameters()))
    return make(chosen, batch_of(own, batch), mode, mesh or size, optimiser=optimiser_of(chosen, own), **options)


def optimiser_of(model: nn.Module, values: Mapping[str, Any]) -> torch.optim.Optimizer | None:
    """The first optimiser of one of the model's parameters."""
    mine = {id(value) for value in model.parameters()}
    return next(
        (one for one in held(values, torch.optim.Optimizer) if any(id(p) in mine for g in one.param_groups for p in g["params"])),
        None,
    )


def models(values: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Models with parameters by the name that holds them, those held by other objects by their class's name."""
    named = [(name, value) for name, value in values.items() if isinstance(value, nn.Module)]
    return roots([*named, *((type(value).__name__, value) for value in held(values, nn.Module))])


def held(values: Mapping[str, Any], kind: type[Held]) -> list[Held]:
    """Objects of a kind that values lead to, as far as can be seen at once: a picture is not worth a long search."""
    return [value for value in islice(reach(values), MOST) if isinstance(value, kind)]
