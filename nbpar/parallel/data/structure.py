"""Take a call's result apart and put it together again: tuples, lists, dicts, what torch's pytree knows, dataclasses, and other
objects that hold tensors."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

DEEPEST = 4  # objects within objects
CLOSED = (Tensor, nn.Module, type, types.FunctionType, types.ModuleType)
PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)


@dataclass(frozen=True)
class Structure:
    """spec: the pytree's; opened: for each of its leaves None, or the class, attributes' names and inside of an object."""

    spec: Any
    opened: tuple[Any, ...] = ()

    @property
    def strange(self) -> str:
        """The kind of an object that was opened and is no dataclass, if there is one."""
        for kind, _, inside, _ in filter(None, self.opened):
            name = inside.strange if dataclasses.is_dataclass(kind) else kind.__name__
            if name:
                return str(name)
        return ""


def flatten(value: Any, depth: int = 0) -> tuple[list[Any], Structure]:
    leaves, spec = tree_flatten(value)
    parts = [names(leaf) if depth < DEEPEST else () for leaf in leaves]
    if not any(parts):
        return leaves, Structure(spec)
    values: list[Any] = []
    opened: list[Any] = []
    for leaf, own in zip(leaves, parts, strict=True):
        if own:
            inside, structure = flatten([getattr(leaf, name, None) for name in own], depth + 1)
            values += inside
            opened.append((type(leaf), own, structure, len(inside)))
        else:
            values.append(leaf)
            opened.append(None)
    return values, Structure(spec, tuple(opened))


def names(leaf: Any) -> tuple[str, ...]:
    """The attributes of what is opened; nothing for any other value."""
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return tuple(field.name for field in dataclasses.fields(leaf))
    return tuple(vars(leaf)) if holds_tensors(leaf) else ()


def holds_tensors(value: Any, depth: int = 0) -> bool:
    """Whether it is an object with tensors among its attributes, or in what those hold."""
    if isinstance(value, CLOSED) or not hasattr(value, "__dict__") or depth > DEEPEST:
        return False
    inside = tree_flatten(list(vars(value).values()))[0]
    return any(isinstance(item, Tensor) or holds_tensors(item, depth + 1) for item in inside)


def unflatten(values: Sequence[Any], structure: Structure) -> Any:
    if not structure.opened:
        return tree_unflatten(values, structure.spec)
    leaves, at = [], 0
    for opened in structure.opened:
        if opened is None:
            leaves.append(values[at])
            at += 1
            continue
        kind, own, inside, count = opened
        made = object.__new__(kind)
        for name, item in zip(own, unflatten(values[at : at + count], inside), strict=True):
            object.__setattr__(made, name, item)
        leaves.append(made)
        at += count
    return tree_unflatten(leaves, structure.spec)
