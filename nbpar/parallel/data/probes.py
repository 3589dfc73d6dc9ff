"""Gradients of a whole and of a split run, compared: the forward pass cannot show how rows mix in a backward pass."""

from __future__ import annotations

from collections.abc import Sequence
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


def gradients(subject: Subject, outputs: Sequence[Any], inputs: Sequence[Any], start: int = 0) -> list[Tensor | None]:
    """Gradients of a fixed combination of the outputs; nothing if the graph goes on into what was made before `start`."""
    targets = wanted(subject, inputs)
    sources = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
    if not targets or not sources or walk(sources, start)[1]:
        return []
    chance = torch.Generator().manual_seed(5)
    factors = [torch.rand(s.shape, generator=chance, dtype=torch.float64).to(s.device, s.dtype) - 0.3 for s in sources]
    try:
        return list(torch.autograd.grad(sources, targets, factors, allow_unused=True))
    except RuntimeError:  # reentrant checkpoints and the like take no `autograd.grad`
        return []


def compare(  # noqa: PLR0917
    subject: Subject,
    values: Sequence[Any],
    hows: Sequence[How | None],
    call: Call,
    inputs: Sequence[Any],
    whole: Sequence[Tensor | None],
) -> None:
    """Of arguments as they are; of weights by their products with the weights: little is sent. Raises Unlike. Collective."""
    if not whole:
        return
    ranks = call.ranks
    with call.gradients.paused():
        left = [leave(value, how, call) if how is not None else value for value, how in zip(values, hows, strict=True)]
        own = gradients(subject, left, inputs)
    if not all(ranks.objects(len(own) == len(whole))):
        raise Unlike("its gradients cannot be compared")
    targets = wanted(subject, inputs)
    weights = [at for at, tensor in enumerate(targets) if id(tensor) in subject.place]
    scale = max((largest(grad) for grad in whole if grad is not None), default=0.0)
    fine = all(
        (a is None) == (b is None) and (a is None or b is None or same(a, b, loose(), scale))
        for at, (a, b) in enumerate(zip(own, whole, strict=True))
        if at not in weights
    )
    mine = products([own[at] for at in weights], [targets[at] for at in weights])
    ranks.all_reduce(mine, "agreement").div_(ranks.size)
    truth = products([whole[at] for at in weights], [targets[at] for at in weights])
    if weights:
        bound = loose() or tolerance(next((grad.dtype for grad in whole if grad is not None), torch.float64))
        fine &= bool(((mine[:, 0] - truth[:, 0]).abs() <= bound * truth[:, 1].max()).all())
        fine &= bool(((mine[:, 2] > 0) == (truth[:, 2] > 0)).all())
    if not all(ranks.objects(fine)):
        raise Unlike("rows mix in its backward pass: gradients of split rows differ")


def products(grads: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    """Of each gradient: its product with the weight, a bound for rounding, and whether there is one."""
    rows = []
    for grad, weight in zip(grads, weights, strict=True):
        if grad is None:
            rows.append([0.0, 0.0, 0.0])
            continue
        own, other = dense(grad).reshape(-1), weight.detach().reshape(-1).to(grad.dtype)
        rows.append([float(torch.dot(own, other)), float(own.norm() * other.norm()), 1.0])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
