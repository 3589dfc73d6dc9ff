"""Optimisers step over parameters of several ranks: each rank computes its own; the rest stays visible everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as base
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .channel import channel
from .dispatch import Dispatch
from .home import owner
from .operands import tensors
from .place import state_on
from .transfer import forget

# Optimisers of torch that treat each parameter alone, so that a step may leave some out.
_ONE_BY_ONE = {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adagrad", "Adadelta", "ASGD"}


@dataclass
class Step:
    """A step that an optimiser makes. frame: of the function that makes it. end: called if an exception ends it. plain: whether
    this rank has all at hand that it takes, so that no operation needs a rule."""

    frame: FrameType
    end: Callable[[], None]
    plain: bool = False

    def goes_on(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        if frame is None:
            self.end()
        return frame is not None


class Optimisers:
    """Watches every optimiser's step. After the first, remote parameters skip the arithmetic: it is dear on meta."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
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
        self._end()

    def _before(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        self._end()  # of one that failed
        link = channel()
        link.stepping_since = link.operations
        step = self._dispatch.step = Step(sys._getframe(1), self._end)
        with torch._C.DisableTorchFunction():
            state_on(optimiser)
            closure = len(args) > 1 or any(value is not None for value in kwargs.values())
            if optimiser in self._stepped and not closure and _one_by_one(optimiser):
                self._set_aside = [(value, value.grad) for value in _settled(optimiser) if value.is_meta]
                for value, _ in self._set_aside:
                    value.grad = None
                step.plain = _unheard(optimiser) and _at_hand(optimiser)
            self._stepped.add(optimiser)

    def _after(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            for value, _ in self._set_aside:
                count = optimiser.state.get(value, {}).get("step")
                if isinstance(count, Tensor):
                    count += 1
                elif count is not None:
                    optimiser.state[value]["step"] += 1
        self._end()

    def _end(self) -> None:
        """The step has been made, or has failed."""
        if self._dispatch.step is None:
            return
        self._dispatch.step = None
        with torch._C.DisableTorchFunction():
            for value, gradient in self._set_aside:
                value.grad = gradient
            self._set_aside.clear()
            forget()
        link = channel()
        link.operations, link.stepping_since = link.stepping_since or 0, None


def _one_by_one(optimiser: Optimizer) -> bool:
    return type(optimiser).__module__.startswith("torch.optim.") and type(optimiser).__name__ in _ONE_BY_ONE


def _settled(optimiser: Optimizer) -> list[Tensor]:
    """Parameters with a gradient whose state is there already."""
    stateless = type(optimiser).__name__ == "SGD"
    return [
        value
        for group in optimiser.param_groups
        for value in group["params"]
        if value.grad is not None and (optimiser.state.get(value) or (stateless and not group["momentum"]))
    ]


def _at_hand(optimiser: Optimizer) -> bool:
    """Whether this rank has all parameters that still have a gradient, their gradients and their states, or all ranks have them."""
    settled = {id(value) for value in _settled(optimiser)}
    learning = [value for group in optimiser.param_groups for value in group["params"] if value.grad is not None]
    return all(id(value) in settled and _is_here(value, optimiser.state.get(value, {})) for value in learning)


def _is_here(value: Tensor, state: dict[str, Any]) -> bool:
    gradient = value.grad
    if (
        value.is_meta
        or gradient is None
        or gradient.is_meta
        or type(gradient) is not Tensor
        or gradient.layout is not torch.strided
    ):
        return False
    return all(owner(one) == owner(value) for one in state.values() if isinstance(one, Tensor) and one.dim())


def _unheard(optimiser: Optimizer) -> bool:
    """Whether nobody listens to a step, and its options are numbers."""
    hooks = [*base._global_optimizer_pre_hooks.values(), *base._global_optimizer_post_hooks.values()]
    if optimiser._optimizer_step_pre_hooks or any(not hook.__module__.startswith("nbpar.") for hook in hooks):
        return False
    scaler = {name: getattr(optimiser, name, None) for name in ("grad_scale", "found_inf")}
    options = [{**group, "params": None} for group in optimiser.param_groups]
    return not tensors([options, scaler])


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
