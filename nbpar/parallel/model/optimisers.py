"""Optimisers step over parameters of several ranks: each rank computes its own; the rest stays visible everywhere."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .channel import channel
from .place import state_on
from .transfer import forget

# Optimisers of torch that treat each parameter alone, so that a step may leave some out.
_ONE_BY_ONE = {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adagrad", "Adadelta", "ASGD"}


class Optimisers:
    """Watches every optimiser's step. After the first, remote parameters skip the arithmetic: it is dear on meta."""

    def __init__(self) -> None:
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self._set_aside: list[tuple[Tensor, Any]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Optimisers:
        self._hooks = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        link = channel()
        link.stepping_since = link.operations
        with torch._C.DisableTorchFunction():
            state_on(optimiser)
            closure = len(args) > 1 or any(value is not None for value in kwargs.values())
            if optimiser in self._stepped and not closure and _one_by_one(optimiser):
                self._set_aside = [(value, value.grad) for value in _settled(optimiser) if value.grad is not None]
                for value, _ in self._set_aside:
                    value.grad = None
            self._stepped.add(optimiser)

    def _after(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            for value, gradient in self._set_aside:
                value.grad = gradient
                count = optimiser.state.get(value, {}).get("step")
                if isinstance(count, Tensor):
                    count += 1
                elif count is not None:
                    optimiser.state[value]["step"] += 1
            self._set_aside.clear()
            forget()
        link = channel()
        link.operations, link.stepping_since = link.stepping_since or 0, None


def _one_by_one(optimiser: Optimizer) -> bool:
    return type(optimiser).__module__.startswith("torch.optim.") and type(optimiser).__name__ in _ONE_BY_ONE


def _settled(optimiser: Optimizer) -> list[Tensor]:
    """Remote parameters whose state is there already."""
    return [
        value
        for group in optimiser.param_groups
        for value in group["params"]
        if value.is_meta and (optimiser.state.get(value) or (type(optimiser).__name__ == "SGD" and not group["momentum"]))
    ]


def group_as_on_one_device(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """What torch's grouping by device and dtype gives when every tensor is on one device."""
    groups: dict[Any, tuple[list[list[Any]], list[int]]] = {}
    for i in range(len(lists[0])):
        first = next(values[i] for values in lists if values and values[i] is not None)
        key = channel().device, first.dtype
        columns, positions = groups.setdefault(key, ([[] for _ in lists], []))
        for values, column in zip(lists, columns, strict=True):
            if values:
                column.append(values[i])
        positions.append(i)
    return groups
