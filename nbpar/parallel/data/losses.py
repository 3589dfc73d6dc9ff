"""Losses inside a split call divide by what all ranks count: labels may be ignored unevenly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data import context
from nbpar.parallel.data.rowwise import LOSS, LOSS_EACH, LOSS_SUM, one_step

NONE, MEAN, SUM = 0, 1, 2  # torch's numbers for reductions
STEPS = {NONE: LOSS_EACH, MEAN: LOSS, SUM: LOSS_SUM}


def counted(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator behind `F.cross_entropy` or `F.nll_loss`: its mean is over all ranks' labels that are not ignored."""

    def loss(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, *smoothing: float) -> Tensor:
        call = None if input.is_meta else context.running
        if call is None or reduction != MEAN or target.is_floating_point():
            return original(input, target, weight, reduction, ignore_index, *smoothing)
        total = original(input, target, weight, SUM, ignore_index, *smoothing)
        count = call.gather(denominator(target, weight, ignore_index).reshape(1)).sum().to(total.dtype)
        # Weighted by rows, as the outputs of a split call are, this is the sum over all ranks by their count.
        return total / (count * call.share.weight)

    def apart(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, *others: Any) -> Tensor:
        args = input, target, weight, reduction, *others
        return loss(*args) if target.is_floating_point() else one_step(STEPS[reduction], loss, args, others)

    return apart


def denominator(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What the mean of these labels is divided by."""
    with torch.no_grad():
        kept = target != ignore_index
        if weight is None:
            return kept.sum()
        return (weight[target.masked_fill(~kept, 0)] * kept).sum()
