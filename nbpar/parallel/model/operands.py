"""The tensors among a function's arguments and results."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from nbpar.errors import Unsupported

from .home import give
from .transfer import bring

_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device, slice, type(...))
MASKS = (torch.bool, torch.uint8)
_NUMBERS = ("alpha", "beta", "value", "fill_value")


def tensors(thing: Any) -> list[Tensor]:
    """The tensors among arguments, lists and dicts; the few other containers go by pytree, which is slower."""
    found: list[Tensor] = []
    todo = [thing]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif type(item) in (tuple, list):
            todo.extend(reversed(item))
        elif type(item) is dict:
            todo.extend(reversed(item.values()))
        elif type(item) is slice:
            found.extend(bound for bound in (item.start, item.stop, item.step) if isinstance(bound, Tensor))
        elif not isinstance(item, _PLAIN):
            found.extend(leaf for leaf in tree_flatten(item)[0] if isinstance(leaf, Tensor))
    return found


def own(result: Any, rank: int, name: str = "", changes: bool = True) -> Any:
    """Mark what an operation made. A number for Python would be known to the owner alone, so it is refused."""
    if isinstance(result, Tensor):
        return give(result, rank)
    for leaf in tree_flatten(result)[0]:
        if isinstance(leaf, Tensor):
            give(leaf, rank)
        elif isinstance(leaf, (bool, int, float, complex)) and not changes:
            raise Unsupported(f"torch's {name!r} gives Python a number that only rank {rank} knows; use .item() on a tensor")
    return result


def on_all_ranks(thing: Any) -> Any:
    """The same with every tensor replicated, outside the graph."""
    return tree_map(lambda leaf: value_of(leaf) if isinstance(leaf, Tensor) else leaf, thing)


def value_of(tensor: Tensor) -> Tensor:
    value = bring(tensor.detach(), None)
    return value.requires_grad_() if tensor.requires_grad else value


def plain_number(key: str, value: Any) -> Any:
    """A keyword that torch takes as a number is read into Python."""
    return bring(value.detach(), None).item() if key in _NUMBERS and isinstance(value, Tensor) and not value.dim() else value


def plain_slices(index: Any) -> Any:
    """Bounds of slices and single positions are read into Python, as torch does."""

    def bound(value: Any) -> Any:
        return operator.index(bring(value.detach(), None)) if isinstance(value, Tensor) else value

    def plain(part: Any) -> Any:
        if isinstance(part, Tensor) and not part.dim() and not (part.is_floating_point() or part.dtype in MASKS):
            return bound(part)
        return slice(bound(part.start), bound(part.stop), bound(part.step)) if isinstance(part, slice) else part

    return tuple(map(plain, index)) if isinstance(index, tuple) else plain(index)


def numbers(thing: Any) -> Any:
    """Whole numbers that come as tensors are read into Python."""
    return tree_map(lambda leaf: bring(leaf.detach(), None).tolist() if isinstance(leaf, Tensor) else leaf, thing)
