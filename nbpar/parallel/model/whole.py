"""At the end of a cell: make what it leaves behind real on every rank again, in place."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

from nbpar.errors import Unsupported

from .channel import channel
from .home import fill, give, is_split, owner, release
from .place import weak_lists_off
from .reach import reach
from .transfer import forget


@dataclass(frozen=True)
class _View:
    """Where a tensor lies in its storage, in elements of its dtype."""

    index: int  # among the rank's tensors
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def make_whole(namespace: Mapping[str, Any], keep: Iterable[str] = ()) -> int:
    """Owners broadcast every tensor that `namespace` leads to, but for what the names in `keep` lead to. Gives the bytes.

    Tensors that share memory share it again, but not with what is kept. Those computed from others become leaves: the graph
    does not outlive the cell.
    """
    forget()
    stay = list(reach({name: namespace[name] for name in keep if name in namespace}, follow=False))
    kept = {id(thing) for thing in stay}
    found = [thing for thing in reach(namespace) if id(thing) not in kept]
    values = [thing for thing in found if isinstance(thing, Tensor)]
    recurrent = [thing for thing in found if isinstance(thing, nn.RNNBase)]
    del found
    flags = [value.requires_grad for value in values]
    for value in values:
        if value.is_leaf and value.grad is not None:
            give(value.grad, owner(value))
    owned = [value for value in values if owner(value) is not None]
    for value in values:
        _cut(value)
    _part(owned, stay)
    gradients = [(value, value.grad) for value in values if value.is_leaf and value.grad is not None]
    total = 0
    stuck: list[tuple[Tensor, Tensor]] = []
    with weak_lists_off(recurrent):
        for value, _ in gradients:
            value.grad = None
        for rank in range(channel().size):
            total += _share([value for value in owned if owner(value) == rank], rank, stuck)
        made = {id(value): whole for value, whole in stuck}
        for value, gradient in gradients:
            value.grad = made.pop(id(gradient), gradient)
    for value, flag in zip(values, flags, strict=True):
        value.requires_grad_(flag)
    if any(channel().gather(bool(made))):
        raise Unsupported(
            "parameters cannot be brought back: a graph that uses them is still alive; "
            "delete what holds it (a loss, an output) at the end of the cell"
        )
    return total


def _cut(value: Tensor) -> None:
    """Leave the graph: it holds the parameters, which cannot be replaced while it lives."""
    if value.grad_fn is not None:
        if value._is_view():
            swap_tensors(value, value.detach())
        else:
            value.detach_()


def _part(values: Sequence[Tensor], stay: Sequence[Any]) -> None:
    """Values in the memory of something that stays get their own."""
    memory = {thing.untyped_storage()._cdata for thing in stay if is_split(thing)}
    for value in values if memory else ():
        if value.untyped_storage()._cdata in memory:
            swap_tensors(value, give(value.detach().clone(), owner(value)))


def _share(values: list[Tensor], rank: int, stuck: list[tuple[Tensor, Tensor]]) -> int:
    """Everything of one rank, storage by storage: it tells which tensors lie where, and sends the bytes."""
    link = channel()
    mine = link.rank == rank
    total = 0
    for size, views in link.tell(_storages(values) if mine else None, rank):
        storage = values[views[0].index].untyped_storage()
        data = torch.empty(size, dtype=torch.uint8, device="meta")
        data = link.broadcast(_all_bytes(storage) if mine else data, rank)
        total += size
        memory = None if mine else fill([values[view.index] for view in views], data)
        for view in views:
            value = values[view.index]
            if memory is None:
                release(value)
                continue
            whole = torch.empty(0, dtype=view.dtype, device=link.device)
            whole.set_(memory, view.offset, view.shape, view.stride)
            if not _become(value, whole):
                stuck.append((value, whole))
    return total


def _storages(values: Sequence[Tensor]) -> list[tuple[int, list[_View]]]:
    groups: dict[int, list[_View]] = {}
    sizes: dict[int, int] = {}
    for index, value in enumerate(values):
        storage = value.untyped_storage()
        view = _View(index, value.dtype, int(value.storage_offset()), tuple(value.shape), value.stride())
        groups.setdefault(storage._cdata, []).append(view)
        sizes[storage._cdata] = storage.nbytes()
    return [(sizes[key], views) for key, views in groups.items()]


def _all_bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _become(value: Tensor, whole: Tensor) -> bool:
    """`value` becomes `whole` under the same object; False if a graph holds it."""
    flag = value.requires_grad
    made = nn.Parameter(whole, flag) if isinstance(value, nn.Parameter) else whole.requires_grad_(flag)
    made.__dict__.update(value.__dict__)
    if value._backward_hooks is not None:
        made._backward_hooks = value._backward_hooks
    for collect in (lambda: None, gc.collect):  # a graph may be held by a reference cycle
        collect()
        try:
            swap_tensors(value, made)
        except RuntimeError:
            continue
        return True
    return False
