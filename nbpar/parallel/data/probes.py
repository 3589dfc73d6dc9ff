"""Gradients of a whole and of a split run, compared: the forward pass cannot show how rows mix in a backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data.border import leave
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.draws import Unlike
from nbpar.parallel.data.gradients import has_hooks, walk
from nbpar.parallel.data.layouts import How, dense, largest, loose, same, tolerance
from nbpar.parallel.data.subject import Subject


def wanted(subject: Subject, inputs: Sequence[Any]) -> list[Tensor]:
    """What gradients are compared for; nothing where a person's hooks would see it."""
    if not torch.is_grad_enabled() or any(has_hooks(parameter) for parameter in subject.parameters):
        return []
    own = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    return [*{id(t): t for t in (*own, *(p for p in subject.parameters if p.requires_grad))}.values()]


@dataclass(frozen=True)
class Gradients:
    """Of one run. arguments: their gradients. products: of each weight with its gradient, and whether it has one: (weights, 2).

    size: how large a product may be. scale: the largest value of any gradient, where arguments have some. Gradients of weights
    are not kept: they may be large.
    """

    arguments: Sequence[Tensor | None]
    products: Tensor
    size: float
    scale: float
    dtype: torch.dtype

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.products).all())


def gradients(
    subject: Subject, outputs: Sequence[Any], inputs: Sequence[Any], start: int = 0, *, sized: bool = True
) -> Gradients | None:
    """Gradients of a fixed combination of the outputs; None if the graph goes on into what was made before `start`."""
    targets = wanted(subject, inputs)
    sources = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
    if not targets or not sources or walk(sources, start).outside:
        return None
    chance = torch.Generator().manual_seed(5)
    factors = [torch.rand(s.shape, generator=chance, dtype=torch.float64).to(s.device, s.dtype) - 0.3 for s in sources]
    try:
        combined = [(source * factor).sum().real for source, factor in zip(sources, factors, strict=True)]
        grads = torch.autograd.grad(combined, targets, allow_unused=True)  # with `grad_outputs` torch imports sympy
    except RuntimeError:  # reentrant checkpoints and the like take no `autograd.grad`
        return None
    arguments = [grad for grad, target in zip(grads, targets, strict=True) if id(target) not in subject.place]
    weights = [pair for pair in zip(grads, targets, strict=True) if id(pair[1]) in subject.place]
    return Gradients(
        arguments,
        products(weights),
        max((size(*pair) for pair in weights), default=0.0) if sized else 0.0,
        max((largest(grad) for grad in grads if grad is not None), default=0.0) if sized and arguments else 0.0,
        next((grad.dtype for grad in grads if grad is not None), torch.float64),
    )


def compare(  # noqa: PLR0917
    subject: Subject,
    values: Sequence[Any],
    hows: Sequence[How | None],
    call: Call,
    inputs: Sequence[Any],
    whole: Gradients,
    bound: float | None,
) -> None:
    """Of arguments as they are; of weights by their products with the weights: little is sent. Raises Unlike. Collective."""
    ranks = call.ranks
    with call.gradients.paused():
        left = [leave(value, how, call) if how is not None else value for value, how in zip(values, hows, strict=True)]
        own = gradients(subject, left, inputs, sized=False)
    mine = own.products if own else torch.zeros_like(whole.products)
    ranks.all_reduce(mine, "agreement").div_(ranks.size)
    every = ranks.objects(
        own and alike(own.arguments, mine, whole, loose() if bound is None else min(bound, tolerance(whole.dtype)))
    )
    if None in every:
        raise Unlike("its gradients cannot be compared")
    if not all(every):
        raise Unlike("rows mix in its backward pass: gradients of split rows differ")


def alike(arguments: Sequence[Tensor | None], products: Tensor, whole: Gradients, bound: float | None) -> bool:
    """Whether a split run gave what the whole one gave. bound: the tolerance, if not that of the type."""
    for own, other in zip(arguments, whole.arguments, strict=True):
        if own is None or other is None:
            if own is not other:
                return False
        elif not same(own, other, bound, whole.scale):
            return False
    near = (products[:, 0] - whole.products[:, 0]).abs() <= (bound or tolerance(whole.dtype)) * whole.size
    return bool(near.all()) and bool(((products[:, 1] > 0) == (whole.products[:, 1] > 0)).all())


def products(pairs: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
    """Of each gradient: its product with the weight, and whether there is one."""
    rows = [[0.0, 0.0] if grad is None else [float(torch.dot(*vectors(grad, weight))), 1.0] for grad, weight in pairs]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def size(grad: Tensor | None, weight: Tensor) -> float:
    """How large their product may be."""
    return 0.0 if grad is None else math.prod(float(vector.norm()) for vector in vectors(grad, weight))


def vectors(grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    own = dense(grad).reshape(-1)
    return own, weight.detach().reshape(-1).to(own.dtype)
