"""Do the pieces of a call give the gradients that the whole gives? A trial beside that of the outputs (`micro`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .channel import channel
from .home import owner
from .joining import TOLERANCE, joined


@dataclass(frozen=True)
class Backward:
    """run: the model's call. layout: how its pieces' outputs are joined."""

    run: Callable[..., Any]
    layout: list[int]

    def gradients(self, calls: list[Any], shares: list[float], targets: list[Tensor]) -> Sequence[Tensor | None]:
        """Of a number to which every entry of the joined outputs contributes in its own way."""
        total: Any = 0.0
        columns = zip(*(tree_flatten(self.run(*args, **kwargs))[0] for args, kwargs in calls), strict=True)
        for number, (column, way) in enumerate(zip(columns, self.layout, strict=True)):
            if isinstance(column[0], Tensor) and column[0].is_floating_point() and column[0].requires_grad:
                output = joined(list(column), way, shares)
                weights = torch.sin(torch.arange(output.numel(), dtype=output.dtype) * 1.3 + number + 1).view(output.shape)
                total = total + (output * weights).sum()
        return torch.autograd.grad(total, targets, allow_unused=True) if isinstance(total, Tensor) else ()


def near(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    """Whether gradients agree, each where it is, measured by the largest of all: some are nothing but rounding. Collective."""
    scale = gap = tolerance = 0.0
    with torch._C.DisableTorchFunction():
        for pair in zip(one, other, strict=True):
            known = [value for value in pair if value is not None]
            if not known or owner(known[0]) not in (None, channel().rank):
                continue
            a, b = (torch.zeros_like(known[0]) if value is None else value for value in pair)
            tolerance = max(tolerance, TOLERANCE.get(a.dtype, 1e-2))
            scale, gap = max(scale, float(a.abs().max())), max(gap, float((a - b).abs().nan_to_num(math.inf).max()))
    scales, gaps, tolerances = zip(*channel().everywhere((scale, gap, tolerance)), strict=True)
    return max(gaps) <= max(tolerances) * max(scales)
