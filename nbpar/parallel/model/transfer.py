"""Values between ranks: three transfers, each differentiable by its dual, so that second derivatives are right too.

Move    owner a -> owner b          dual: Move b -> a
Enter   replicated -> owner         dual: Spread owner -> replicated
Spread  owner -> replicated         dual: Enter
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from nbpar.parallel.inner import Inner

from .channel import channel
from .home import give, owner, remote, stamp


class Move(Inner):
    @staticmethod
    def forward(ctx: Any, value: Tensor, source: int, to: int) -> Tensor:
        link = channel()
        ctx.way = source, to
        link.edge("move", source, to, tuple(value.shape), value.dtype)
        if link.rank == source:
            link.send(value, to)
        return give(link.receive(value, source), to) if link.rank == to else remote(value, to)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        source, to = ctx.way
        return Move.apply(give(grad, to), to, source), None, None


class Enter(Inner):
    @staticmethod
    def forward(ctx: Any, value: Tensor, to: int) -> Tensor:
        ctx.to = to
        return give(value.clone(), to) if channel().rank == to else remote(value, to)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Spread.apply(give(grad, ctx.to), ctx.to), None


class Spread(Inner):
    @staticmethod
    def forward(ctx: Any, value: Tensor, source: int) -> Tensor:
        ctx.source = source
        link = channel()
        link.edge("spread", source, tuple(value.shape), value.dtype)
        return link.broadcast(value, source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Enter.apply(grad, ctx.source), None


_sent: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> {(to, with gradient): (stamp, its copy there)}


def bring(value: Tensor, to: int | None) -> Tensor:
    """`value` where the rank `to` is, or on all ranks for None. A copy is kept until the value changes."""
    source = owner(value)
    if source == to:
        return value
    read = channel().on_read if to is None else None
    if read is not None:
        read()
    graph = value.requires_grad and torch.is_grad_enabled()
    if source is None and to is not None and not graph:
        return value if channel().rank == to else remote(value, to)
    if value.is_inference():
        return _transfer(value, source, to)
    copies, now = _sent.setdefault(value, {}), stamp(value)
    kept = copies.get((to, graph))
    if kept is None or kept[0] is not now:
        kept = copies[to, graph] = now, _transfer(value, source, to)
    copy: Tensor = kept[1]
    return copy


def _transfer(value: Tensor, source: int | None, to: int | None) -> Tensor:
    if source is None:
        return Enter.apply(value, to)
    if to is None:
        return Spread.apply(value, source)
    note = channel().on_move
    if note is not None:
        note(value, to)
    return Move.apply(value, source, to)


def forget() -> None:
    """Drop every kept copy: after a backward pass or an optimiser step, which write gradients and parameters unseen."""
    _sent.clear()
