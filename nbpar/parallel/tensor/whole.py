"""At the end of a cell: what it leaves becomes the notebook's own whole tensors again, under the same objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

from nbpar.errors import Unsupported
from nbpar.parallel.model.reach import reach

from .sharded import Sharded, Shards
from .split import replaced


def make_whole(namespace: Mapping[str, Any], more: Sequence[Tensor]) -> None:
    """Every sharded tensor that `namespace` leads to, and `more`. Those computed from others become leaves: their graph ends.

    Raises Unsupported if a graph that is still alive holds a parameter.
    """
    values = list({id(thing): thing for thing in (*reach(namespace), *more) if isinstance(thing, Tensor)}.values())
    sharded = [value for value in values if isinstance(value, Sharded)]
    if not sharded:
        return
    flags = [value.requires_grad for value in sharded]
    for value in values:
        if not isinstance(value, Sharded) and value.grad_fn is not None:
            _cut(value)
    gradients = [(value, value.grad) for value in values if value.is_leaf and value.grad is not None]
    for value, _ in gradients:
        value.grad = None
    memories: dict[int, Tensor] = {}
    stuck = False
    for value, flag in zip(sharded, flags, strict=True):
        whole = memories.get(id(value._shards))
        if whole is None:
            whole = memories[id(value._shards)] = _home(value._shards)
        for step in value._path:
            whole = step(whole)
        made = nn.Parameter(whole, flag) if isinstance(value, nn.Parameter) else whole.detach().requires_grad_(flag)
        stuck |= not replaced(value, made)
    for value, gradient in gradients:
        value.grad = gradient
    if stuck:
        raise Unsupported(
            "parameters cannot be brought back: a graph that uses them is still alive; "
            "delete what holds it (a loss, an output) at the end of the cell"
        )


def _cut(value: Tensor) -> None:
    """Leave the graph: it holds the parameters, which cannot be replaced while it lives."""
    if value._is_view():
        swap_tensors(value, value.detach())
    else:
        value.detach_()


def _home(shards: Shards) -> Tensor:
    """The whole, in the memory that the notebook's tensor had before, if it had any."""
    whole, storage = shards.value(), shards.spare
    if storage is None or storage.nbytes() not in (0, whole.nbytes):
        return whole
    if not storage.nbytes():
        storage.resize_(whole.nbytes)
    return torch.empty(0, dtype=whole.dtype).set_(storage, 0, whole.shape, whole.stride()).copy_(whole)
