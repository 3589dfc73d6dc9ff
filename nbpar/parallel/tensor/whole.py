"""At the end of a cell: what it leaves becomes the notebook's own whole tensors again, under the same objects. Before the end:
beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbpar.errors import Unsupported
from nbpar.parallel.model.channel import agree
from nbpar.parallel.model.home import borrowed
from nbpar.parallel.model.reach import reach
from nbpar.parallel.model.whole import cut
from nbpar.values.tensors import gradient_of

from .above import OWN
from .ranks import ranks
from .sharded import Sharded, Shards
from .split import replaced


def make_whole(namespace: Mapping[str, Any], more: Sequence[Tensor]) -> None:
    """Every sharded tensor that `namespace` leads to, and `more`. Those computed from others become leaves: their graph ends.

    Raises Unsupported if a graph that is still alive holds a parameter.
    """
    values = _values(namespace, more)
    sharded = [value for value in values if isinstance(value, Sharded)]
    if not sharded:
        return
    sharded.sort(key=lambda value: not value._is_view())  # a view holds what it is a view of
    flags = [value.requires_grad for value in sharded]
    gradients = [(value, gradient) for value in values if (gradient := gradient_of(value)) is not None]
    for value in values:
        if value.grad_fn is not None and (not isinstance(value, Sharded) or value.retains_grad):
            cut(value)
    for value, _ in gradients:
        value.grad = None
    memories: dict[int, Tensor] = {}
    stuck = False
    for value, flag in zip(sharded, flags, strict=True):
        whole = memories.get(id(value._shards))
        if whole is None:
            whole = memories[id(value._shards)] = _home(value._shards, value._shards.value())
        for step in value._path:
            whole = step(whole)
        made = _as(value, whole, flag)
        stuck |= not replaced(value, made)
    for value, gradient in gradients:
        value.grad = gradient
    if stuck:
        raise Unsupported(
            "parameters cannot be brought back: a graph that uses them is still alive; "
            "delete what holds it (a loss, an output) at the end of the cell"
        )


@contextmanager
def whole_beside(namespace: Mapping[str, Any], more: Sequence[Tensor]) -> Iterator[dict[int, Tensor] | None]:
    """What `make_whole` would make of tensors if it were called now, by their ids, of those that it would change; they are as they
    are. None where ranks do not lead to the same ones. Collective.
    """
    values = _values(namespace, more)
    sharded = [value for value in values if isinstance(value, Sharded)]
    if not agree(ranks().channel.gather([tuple(value.shape) for value in sharded])):
        yield None
        return
    others = {
        id(value): value.detach().requires_grad_(value.requires_grad)
        for value in values
        if value.grad_fn is not None and not isinstance(value, Sharded)
    }
    memories: dict[int, Tensor] = {}
    with borrowed(value._shards.spare for value in sharded):
        for value in sharded:
            whole = memories.get(id(value._shards))
            if whole is None:
                whole = memories[id(value._shards)] = _home(value._shards, value._shards.unnoticed())
            for step in value._path:
                whole = step(whole)
            made = others[id(value)] = _as(value, whole, value.requires_grad)
            made.__dict__.update({name: thing for name, thing in value.__dict__.items() if name not in OWN})
        yield others


def _values(namespace: Mapping[str, Any], more: Sequence[Tensor]) -> list[Tensor]:
    return list({id(thing): thing for thing in (*reach(namespace), *more) if isinstance(thing, Tensor)}.values())


def _as(value: Tensor, whole: Tensor, flag: bool) -> Tensor:
    return nn.Parameter(whole, flag) if isinstance(value, nn.Parameter) else whole.detach().requires_grad_(flag)


def _home(shards: Shards, whole: Tensor) -> Tensor:
    """The whole, in the memory that the notebook's tensor had before, if it had any."""
    storage = shards.spare
    if storage is None or storage.nbytes() not in (0, whole.nbytes):
        return whole
    if not storage.nbytes():
        storage.resize_(whole.nbytes)
    return torch.empty(0, dtype=whole.dtype).set_(storage, 0, whole.shape, whole.stride()).copy_(whole)
