"""Losses inside a split call divide by what all ranks count: labels may be ignored unevenly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data import context


def counted(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`F.cross_entropy` or `F.nll_loss`, whose mean is over the labels of all ranks that are not ignored."""

    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: Any = None,
        ignore_index: int = -100,
        reduce: Any = None,
        reduction: str = "mean",
        **more: Any,
    ) -> Tensor:
        call = context.running
        if call is None or reduction != "mean" or target.is_floating_point() or not (size_average is reduce is None):
            return original(input, target, weight, size_average, ignore_index, reduce, reduction, **more)
        total = original(input, target, weight, None, ignore_index, None, "sum", **more)
        count = denominator(target, weight, ignore_index).to(total.dtype).reshape(1)
        call.meet()
        call.ranks.all_reduce(count, "inside")
        # Weighted by rows, as the outputs of a split call are, this is the sum over all ranks by their count.
        return total / (count[0] * call.share.weight)

    return loss


def denominator(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What the mean of these labels is divided by."""
    with torch.no_grad():
        kept = target != ignore_index
        if weight is None:
            return kept.sum()
        return (weight[target.masked_fill(~kept, 0)] * kept).sum()
