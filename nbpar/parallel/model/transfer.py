"""Values between ranks: three transfers, each differentiable by its dual, so that second derivatives are right too.

Depart, Arrive   owner a -> owner b          dual: Depart, Arrive b -> a
Enter            replicated -> owner         dual: Spread owner -> replicated
Spread           owner -> replicated         dual: Enter

A move has two ends, so that no rank waits for a value before it needs it: `Depart` is made as soon as the value is known to
travel, `Arrive` where it is first used. A backward pass runs the newest node first. So a gradient leaves (Arrive's backward)
before the work that came before the value's use, and is waited for (Depart's) after the work that came since the value was made:

    h = first(x)      on rank 0                      backward:
    Depart(h)                                        Arrive(a)   1 sends the gradient of a
    a = a(h)          on rank 0                      b           on rank 1
    Depart(a)                                        Arrive(h)   1 sends the gradient of h
    Arrive(h)         1 waits for h                  Depart(a)   0 waits for the gradient of a
    b = b(h)          on rank 1                      a           on rank 0, while 1 computes that of b
    Arrive(a)         1 waits for a                  Depart(h)   0 waits for the gradient of h
    a + b             on rank 1                      first
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from nbpar.parallel.inner import Inner

from .channel import channel, connected
from .home import arrived, expect, give, owner, remote, stamp


class Depart(Inner):
    """The message is posted on both sides. Until it arrives the value is on meta on every rank."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: int, to: int) -> Tensor:
        link = channel()
        ctx.way = source, to
        link.edge("move", source, to, tuple(value.shape), value.dtype)
        under_way = remote(value, to)
        if link.rank == source:
            link.send(value, to)
        elif link.rank == to:
            expect(under_way, link.expect(value, source))
        return under_way

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        source, to = ctx.way
        return Arrive.apply(grad, to, source), None, None


class Arrive(Inner):
    """The rank that it goes to waits for it."""

    @staticmethod
    def forward(ctx: Any, under_way: Tensor, source: int, to: int) -> Tensor:
        ctx.way = source, to
        return give(arrived(under_way), to) if channel().rank == to else remote(under_way, to)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        source, to = ctx.way
        return Depart.apply(give(grad, to), to, source), None, None


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


@dataclass
class Copy:
    """Of a value that goes to another rank. stamp: of the value as it was then."""

    stamp: object
    under_way: Tensor
    there: Tensor | None = None


_sent: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> {(to, with gradient): its copy there}


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
    copy = _copy(value, source, to, channel().on_move)
    if copy.there is None:
        copy.there = copy.under_way if source is None or to is None else Arrive.apply(copy.under_way, source, to)
    there: Tensor = copy.there
    return there


def send_ahead(value: Tensor, to: int) -> None:
    """Let a value that one rank holds leave for the rank `to`, which will ask for it."""
    source = owner(value)
    if source is not None and source != to:
        _copy(value, source, to)


def _copy(value: Tensor, source: int | None, to: int | None, note: Callable[[Tensor, int], None] | None = None) -> Copy:
    """note: told of what goes from one rank to another and had not left before."""
    copies, now = _sent.setdefault(value, {}), stamp(value)
    key = to, value.requires_grad and torch.is_grad_enabled()
    copy: Copy | None = copies.get(key)
    if copy is None or copy.stamp is not now:
        if note is not None and source is not None and to is not None:
            note(value, to)
        copy = copies[key] = Copy(now, _transfer(value, source, to))
    return copy


def _transfer(value: Tensor, source: int | None, to: int | None) -> Tensor:
    if source is None:
        made: Tensor = Enter.apply(value, to)
    elif to is None:
        made = Spread.apply(value, source)
    else:
        made = Depart.apply(value, source, to)
    return made


def forget() -> None:
    """Drop every kept copy: after a backward pass or an optimiser step, which write gradients and parameters unseen. Nothing
    here then stands in the way of a swap either."""
    _sent.clear()
    if connected() and (note := channel().on_forget) is not None:
        note()
