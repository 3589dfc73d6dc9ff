"""Put tensors on the ranks that own them: meta elsewhere, under the same Python object, so that optimisers stay valid."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

from .channel import channel
from .home import give, loose, loosen, owner, pin, remote, spare
from .layers import Layer
from .transfer import forget


class Stuck(Exception):
    """A tensor that cannot be replaced, in words."""


def place(layers: Sequence[Layer], ranks: Sequence[int]) -> dict[nn.Module, int]:
    """Place each layer's parameters, buffers and gradients on its rank. Gives the rank of every module that was placed.

    A tensor of several layers lives with the first. If those are on different ranks it is not pinned: it travels to the
    later ones. Raises Stuck, and places nothing, on all ranks alike.
    """
    forget()
    homes: dict[nn.Module, int] = {}
    where: dict[int, tuple[Tensor, set[int], int]] = {}
    for layer, rank in zip(layers, ranks, strict=True):
        homes.update(dict.fromkeys(layer.parts, rank))
        for value in layer.tensors():
            if owner(value) is None or loose(value):
                where.setdefault(id(value), (value, set(), rank))[1].add(rank)
    modules = [part for layer in layers for part in layer.parts]
    with _weak_lists_off(modules):
        if why := _stuck([value for value, _, _ in where.values()]):
            raise Stuck(why)
        apart = [(value, rank) for value, _, rank in where.values() if owner(value) is not None]
        for value, _, rank in where.values():
            if owner(value) is None:
                put(value, rank)
        move(apart)
        for value, users, _ in where.values():
            loosen(value, False)
            if len(users) == 1:
                pin(value)
    return homes


def put(value: Tensor, rank: int, *, again: bool = True) -> None:
    """Make a replicated tensor live on `rank`. again: where it goes, its memory is remembered, so that it comes back to it."""
    gradient = value.grad if value.is_leaf else None
    if channel().rank != rank:
        value.grad = None
        storage = value.untyped_storage()
        _swap(value, _stand_in(value, rank))
        if again:
            spare(value, storage)
        if gradient is not None:
            put(gradient, rank)
            value.grad = gradient
    give(value, rank)
    if value.grad is not None:
        give(value.grad, rank)


def move(values: Iterable[tuple[Tensor, int]]) -> None:
    """Tensors that live on one rank go to another; next comes always what goes to the rank that holds least, so that no rank
    needs more memory than before and after, and that of one tensor."""
    todo: dict[int, list[tuple[Tensor, int]]] = {rank: [] for rank in range(channel().size)}
    held = [0] * channel().size
    for value, to in values:
        source = owner(value)
        assert source is not None
        held[source] += value.nbytes
        if source != to:
            todo[to].append((value, source))
    while any(todo.values()):
        to = min((rank for rank, rest in todo.items() if rest), key=lambda rank: held[rank])
        value, source = todo[to].pop(0)
        held[source] -= value.nbytes
        held[to] += value.nbytes
        _move(value, source, to)


def _move(value: Tensor, source: int, to: int) -> None:
    link = channel()
    gradient, value.grad = value.grad, None
    link.edge("place", source, to, tuple(value.shape), value.dtype)
    made = _stand_in(value, to)
    if link.rank == source:
        link.send(value, to)
        link.flush()
    if link.rank == to:
        made = link.receive(value, source)
        made = nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made
        give(made, to)
    _swap(value, made)
    if gradient is not None:
        _move(gradient, source, to)
        value.grad = gradient


def _stand_in(value: Tensor, rank: int) -> Tensor:
    made = remote(value, rank)
    if isinstance(value, nn.Parameter):
        made = nn.Parameter(made, value.requires_grad)
    else:
        made.requires_grad_(value.requires_grad)
    return made


def _swap(value: Tensor, made: Tensor) -> None:
    """`value` becomes `made`, keeping its identity, attributes and hooks."""
    made.__dict__.update(value.__dict__)
    if value._backward_hooks is not None:
        made._backward_hooks = value._backward_hooks
    hooks = getattr(value, "_post_accumulate_grad_hooks", None)
    if hooks is not None:
        made._post_accumulate_grad_hooks = hooks
    swap_tensors(value, made)


def _stuck(values: Sequence[Tensor]) -> str:
    """Why not all of them can be replaced, on all ranks alike; empty if they can. The graph of an earlier cell may be held on some
    ranks alone, by a cycle of references above all."""
    why = _held(values)
    if why:
        gc.collect()
        why = _held(values)
    return next(filter(None, channel().everywhere(why)), "")


def _held(values: Sequence[Tensor]) -> str:
    """Why not all of them can be replaced here, found out by putting a new tensor on the same memory in the place of each."""
    for value in values:
        if not value.is_leaf:
            return "one of its tensors is computed from others"
        made, flag = value.detach(), value.requires_grad
        gradient, value.grad = value.grad, None
        try:
            _swap(value, nn.Parameter(made, flag) if isinstance(value, nn.Parameter) else made.requires_grad_(flag))
        except RuntimeError:
            return "a graph that uses its parameters is alive; delete the loss of an earlier step first"
        finally:
            value.grad = gradient
    return ""


class _weak_lists_off:
    """Recurrent layers keep weak references to their weights, which stand in the way of a swap."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.layers = [module for module in modules if isinstance(module, nn.RNNBase)]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer._flat_weight_refs = []

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer._flat_weights = [getattr(layer, name, None) for name in layer._flat_weights_names]
            layer._flat_weight_refs = [None if w is None else weakref.ref(w) for w in layer._flat_weights]


weak_lists_off = _weak_lists_off


def state_on(optimiser: torch.optim.Optimizer) -> None:
    """The state of a parameter lives where the parameter does, also after it was loaded."""
    for value, state in optimiser.state.items():
        if not isinstance(value, Tensor) or (rank := owner(value)) is None:
            continue
        for thing in state.values():
            if isinstance(thing, Tensor) and thing.dim() and owner(thing) is None:
                put(thing, rank)
