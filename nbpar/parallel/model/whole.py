"""At the end of a cell: make what it leaves behind real on every rank again, in place. Before the end: beside it."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

from nbpar.errors import Unsupported
from nbpar.values.tensors import gradient_of

from .channel import agree, channel
from .home import borrowed, fill, give, home, is_split, owner, release, spare_of
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

    def on(self, memory: torch.UntypedStorage) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=memory.device).set_(memory, self.offset, self.shape, self.stride)


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
    gradients = _own_gradients(values)
    owned = [value for value in values if owner(value) is not None]
    for value in values:
        if value.grad_fn is not None or (value._is_view() and is_split(value) and not value.requires_grad):
            cut(value)
    _part(owned, stay)
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


def _own_gradients(values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """A gradient is where its tensor is: a backward pass does not say so. Gives those that have one, with it."""
    pairs = [(value, gradient) for value in values if (gradient := gradient_of(value)) is not None]
    for value, gradient in pairs:
        give(gradient, home(value))
    return pairs


@contextmanager
def whole_beside(namespace: Mapping[str, Any], keep: Iterable[str] = ()) -> Iterator[dict[int, Tensor] | None]:
    """What `make_whole` would make of tensors if it were called now, by their ids, of those that it would change; they are as they
    are. None where it would fail, or ranks do not lead to the same ones. Collective.
    """
    stay = list(reach({name: namespace[name] for name in keep if name in namespace}, follow=False))
    kept = set(map(id, stay))
    values = [thing for thing in reach(namespace) if isinstance(thing, Tensor) and id(thing) not in kept]
    _own_gradients(values)
    owned: dict[int, list[Tensor]] = {rank: [] for rank in range(channel().size)}
    lost = False
    for value in values:
        try:
            if (rank := owner(value)) is not None:
                owned[rank].append(value)
        except Unsupported:
            lost = True
    if lost or not agree(channel().gather({rank: [tuple(value.shape) for value in mine] for rank, mine in owned.items()})):
        yield None
        return
    others = {id(value): _as(value, value.detach()) for value in values if value.grad_fn is not None}
    with borrowed(spare_of(value) for mine in owned.values() for value in mine):
        for rank, mine in owned.items():
            for views, memory, _ in _arriving(mine, rank):
                if memory is not None:
                    others.update((id(value), _as(value, view.on(memory))) for view in views for value in (mine[view.index],))
        yield others


def _as(value: Tensor, other: Tensor) -> Tensor:
    """`other`, as `value` will be once its graph is gone."""
    flag = value.requires_grad
    made = nn.Parameter(other, flag) if isinstance(value, nn.Parameter) else other.requires_grad_(flag)
    made.__dict__.update(value.__dict__)
    return made


def cut(value: Tensor) -> None:
    """Leave the graph, which holds the parameters, and what it is a view of: what is held cannot be replaced.

    Raises Unsupported for a view that torch watches, as it is to retain its gradient.
    """
    if not value._is_view():
        value.detach_()
    elif value.retains_grad:
        raise Unsupported(
            f"a view {tuple(value.shape)} with retain_grad() cannot be left in a variable; "
            "keep its .grad and delete it at the end of the cell, or call retain_grad() on what it is a view of"
        )
    else:
        swap_tensors(value, value.detach())


def _part(values: Sequence[Tensor], stay: Sequence[Any]) -> None:
    """Values in the memory of something that stays get their own."""
    memory = {thing.untyped_storage()._cdata for thing in stay if is_split(thing)}
    for value in values if memory else ():
        if value.untyped_storage()._cdata in memory:
            swap_tensors(value, give(value.detach().clone(), owner(value)))


def _share(values: list[Tensor], rank: int, stuck: list[tuple[Tensor, Tensor]]) -> int:
    """Everything of one rank. Gives the bytes."""
    total = 0
    for views, memory, size in _arriving(values, rank):
        total += size
        for view in views:
            value = values[view.index]
            if memory is None:
                release(value)
            elif not _become(value, whole := view.on(memory)):
                stuck.append((value, whole))
    return total


def _arriving(values: Sequence[Tensor], rank: int) -> Iterator[tuple[list[_View], torch.UntypedStorage | None, int]]:
    """Storage by storage, the rank that owns these values tells which of them lie where, and sends the bytes. Gives the values, the
    memory that holds them here now, None on the owner, and its size."""
    link = channel()
    mine = link.rank == rank
    for size, views in link.tell(_storages(values) if mine else None, rank):
        storage = values[views[0].index].untyped_storage()
        data = torch.empty(size, dtype=torch.uint8, device="meta")
        data = link.broadcast(_all_bytes(storage) if mine else data, rank)
        yield views, None if mine else fill([values[view.index] for view in views], data), size


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
    made = _as(value, whole)
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
