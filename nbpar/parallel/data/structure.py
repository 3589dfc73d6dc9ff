"""Take a call's result apart and put it together again: tuples, lists, dicts, what torch's pytree knows, and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Structure:
    """spec: the pytree's; opened: for each of its leaves None, or the class, field names and inside of a dataclass."""

    spec: Any
    opened: tuple[Any, ...] = ()


def flatten(value: Any) -> tuple[list[Any], Structure]:
    leaves, spec = tree_flatten(value)
    if not any(dataclasses.is_dataclass(leaf) for leaf in leaves):
        return leaves, Structure(spec)
    values: list[Any] = []
    opened: list[Any] = []
    for leaf in leaves:
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = tuple(field.name for field in dataclasses.fields(leaf))
            inside, structure = flatten([getattr(leaf, name, None) for name in names])
            values += inside
            opened.append((type(leaf), names, structure, len(inside)))
        else:
            values.append(leaf)
            opened.append(None)
    return values, Structure(spec, tuple(opened))


def unflatten(values: Sequence[Any], structure: Structure) -> Any:
    if not structure.opened:
        return tree_unflatten(values, structure.spec)
    leaves, at = [], 0
    for opened in structure.opened:
        if opened is None:
            leaves.append(values[at])
            at += 1
            continue
        kind, names, inside, count = opened
        made = object.__new__(kind)
        for name, item in zip(names, unflatten(values[at : at + count], inside), strict=True):
            object.__setattr__(made, name, item)
        leaves.append(made)
        at += count
    return tree_unflatten(leaves, structure.spec)
