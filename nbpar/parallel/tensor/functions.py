"""The border between whole values and this rank's part of a layer's work: pairs of functions, each the other's backward.

    Part     whole → this rank's columns             Wrap    this rank's columns → whole, still split
                                                     Gather  this rank's columns → whole, on every rank
    Spread   whole → every rank uses it in its way   SumUp   every rank's summand → whole

What a rank computes in between is plain tensors that differ from rank to rank; outside it everything is whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .ranks import ranks
from .sharded import Sharded, Shards, layout, whole_of

_NAMED: dict[tuple[Any, str], Any] = {}


def named(function: Any, name: str) -> Any:
    """The same, under a name that one process gives to its results' `grad_fn`: texts show it."""
    if (function, name) not in _NAMED:
        made = _NAMED[function, name] = type(function.__name__, (function,), {})
        made._backward_cls.__name__ = name  # type: ignore[attr-defined]
    return _NAMED[function, name]


def as_torch(function: Any, output: Tensor, bias: bool = False) -> Any:
    """The function that ends a layer, named as torch names the layer. bias: one was added apart from `output`."""
    if output.grad_fn is None:
        return function
    name = output.grad_fn.name()
    return named(
        function, {"MmBackward0": "AddmmBackward0", "UnsafeViewBackward0": "ViewBackward0"}.get(name, name) if bias else name
    )


class Part(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int) -> Tensor:
        dim %= value.dim()
        ctx.dim, ctx.count = dim, value.shape[dim]
        shards = layout(value)
        if shards is not None and shards.dim == dim:
            ctx.back = Wrap
            assert shards.part is not None
            return shards.part.detach()
        ctx.back = Wrap if isinstance(value, Sharded) else Gather
        return ranks().cut(whole_of(value), dim).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.back.apply(grad, ctx.dim, ctx.count), None


class Wrap(Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, count: int, kept: bool = False) -> Tensor:
        dim %= part.dim()
        ctx.dim = dim
        shape = list(part.shape)
        shape[dim] = count
        return Sharded(Shards(part.detach().contiguous(), dim, torch.Size(shape), kept=kept))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Part.apply(grad, ctx.dim), None, None, None


class Gather(Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, count: int) -> Tensor:
        ctx.dim = dim
        return ranks().gather(part, dim, count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Part.apply(grad, ctx.dim), None, None


class Spread(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return whole_of(value).detach() if isinstance(value, Sharded) else value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return SumUp.apply(grad)


class SumUp(Function):
    @staticmethod
    def forward(ctx: Any, summand: Tensor) -> Tensor:
        return ranks().all_reduce(summand)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Spread.apply(grad)
