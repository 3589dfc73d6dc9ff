"""The border of a split call, as differentiable functions.

                     forward                                 backward
    Enter            this rank's rows                        gather the rows' gradients, divide by N
    Leave            gather the rows                         N × this rank's rows
    LeaveNumber      weighted sum over ranks                 N × weight × gradient
    SumRanks         sum over ranks (inside a call)          sum over ranks

The factor N is cancelled by the average of the parameters' gradients. It keeps what does not pass the border right under that
average: it is alike on all ranks. Each backward is made of these functions again, so that double backward holds.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nbpar.parallel.data.context import Call
from nbpar.parallel.data.layouts import How, Layout
from nbpar.parallel.inner import Inner


class Enter(Inner):
    entrance = True

    @staticmethod
    def forward(ctx: Any, whole: Tensor, layout: Layout, call: Call) -> Tensor:
        ctx.layout, ctx.call = layout, call
        return layout.cut(whole, call.share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Leave.apply(grad, ctx.layout, ctx.call) / ctx.call.ranks.size, None, None


class Leave(Inner):
    @staticmethod
    def forward(ctx: Any, local: Tensor, layout: Layout, call: Call) -> Tensor:
        ctx.layout, ctx.call = layout, call
        return layout.gather(local, call.share, call.ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.call.reached()
        return Enter.apply(grad, ctx.layout, ctx.call) * ctx.call.ranks.size, None, None


class LeaveNumber(Inner):
    @staticmethod
    def forward(ctx: Any, local: Tensor, weight: float, call: Call) -> Tensor:
        ctx.weight, ctx.call = weight, call
        return call.ranks.all_reduce((local * weight).contiguous(), "gather")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.call.reached()
        return grad * (ctx.weight * ctx.call.ranks.size), None, None


class LeaveSame(Inner):
    """A value that is alike on all ranks already; its gradients still come from the call."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, call: Call) -> Tensor:
        ctx.call = call
        return local.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.call.reached()
        return grad, None


class SumRanks(Inner):
    @staticmethod
    def forward(ctx: Any, local: Tensor, call: Call) -> Tensor:
        ctx.call = call
        return call.ranks.all_reduce(local.clone().contiguous(), "inside")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return SumRanks.apply(grad, ctx.call), None


def leave(local: Tensor, how: How, call: Call) -> Tensor:
    """An output of a split call as one process would have made it."""
    if isinstance(how, Layout):
        return Leave.apply(local, how, call)
    if how == "mean":
        return LeaveNumber.apply(local, call.share.weight, call)
    if how == "sum":
        return LeaveNumber.apply(local, 1.0, call)
    return LeaveSame.apply(local, call) if local.requires_grad else local
