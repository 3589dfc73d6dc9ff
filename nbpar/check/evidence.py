"""What a process has at the K-th optimiser step of a cell: losses, weights, random states.

The same code looks in one process and under every mode: as the cell's own code would look, by `tensor.numpy()`, which is
the whole value whatever the mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from nbpar.errors import Unsupported
from nbpar.parallel.model.reach import modules
from nbpar.parallel.patch import patched
from nbpar.values.random_state import RandomStates

LOSSES = 4096  # remembered at most
DEEPEST = 6  # containers in containers that are looked into
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}  # see compare.py


@dataclass(frozen=True)
class Seen:
    """One value. rounding: how far it may be off relative to its size, 0 for what is not computed in floating point."""

    value: Any  # an array, or a str
    rounding: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """steps: optimiser steps made. ended: whether this is the end of the cell. values: by name, in the order in which a fault
    would come to them: losses, weights, variables. random: states by stream."""

    steps: int
    ended: bool
    values: dict[str, Seen]
    random: dict[str, bytes]


class Witness:
    """Watches a cell and looks once, after `steps` optimiser steps; `finish` looks at the end of a cell that had fewer.

    names: gives the person's variables. losses: whether they are looked at; without: variables that are not.
    then: what is done after the look.
    """

    def __init__(
        self,
        steps: int,
        names: Callable[[], Mapping[str, Any]],
        *,
        losses: bool = True,
        without: Collection[str] = (),
    ) -> None:
        self.evidence: Evidence | None = None
        self.then: Callable[[], None] = lambda: None
        self._limit, self._names, self._with_losses, self._without = steps, names, losses, without
        self._steps = self._within = 0
        self._losses: list[Tensor] = []
        self._optimisers: list[Optimizer] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        hook = register_optimizer_step_post_hook(self._stepped)
        try:
            with patched(Tensor, "backward", self._noted), patched(torch.autograd, "backward", self._noted):
                yield
        finally:
            hook.remove()

    def finish(self) -> None:
        if self.evidence is None:
            self._look(ended=True)

    def _noted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`backward`, its tensors remembered. One inside another is torch's own."""

        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            if not self._within and self.evidence is None and len(self._losses) < LOSSES:
                ends = args[0] if args else kwargs.get("tensors", ())
                with torch.no_grad():
                    self._losses += [end.detach() for end in ([ends] if isinstance(ends, Tensor) else ends)]
            self._within += 1
            try:
                return original(*args, **kwargs)
            finally:
                self._within -= 1

        return backward

    def _stepped(self, optimiser: Optimizer, *_: Any) -> None:
        if self.evidence is not None:
            return
        self._steps += 1
        if not any(optimiser is known for known in self._optimisers):
            self._optimisers.append(optimiser)
        if self._steps == self._limit:
            self._look(ended=False)

    def _look(self, ended: bool) -> None:
        random = RandomStates().capture()
        values = {}
        with torch.no_grad():
            for name, value in self._named(ended):
                try:
                    seen = look_at(value)
                except Unsupported:  # no rank has it: a graph's inner value, say
                    continue
                if seen is not None:
                    values[name] = seen
        self.evidence = Evidence(self._steps, ended, values, random)
        self._losses.clear()
        self.then()

    def _named(self, ended: bool) -> Iterator[tuple[str, Any]]:
        if self._with_losses:
            yield from ((f"loss {number}", loss) for number, loss in enumerate(self._losses, 1))
        names = {name: value for name, value in self._names().items() if name not in self._without}
        with torch._C.DisableTorchFunction():
            found = modules(names)
        known = set()
        for name, module in found:
            for key, value in chain(module.named_parameters(), module.named_buffers()):
                known.add(id(value))
                yield f"{name}.{key}", value
        given = {id(value): name for name, value in names.items() if isinstance(value, Tensor)}
        for optimiser in self._optimisers:
            parameters = [value for group in optimiser.param_groups for value in group["params"]]
            for number, value in enumerate(parameters):
                if id(value) not in known:
                    yield given.get(id(value), f"parameter {number} of {type(optimiser).__name__}"), value
        if ended and not self._steps:
            yield from chain.from_iterable(leaves(name, value) for name, value in names.items())


def leaves(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What a variable holds: tensors, arrays, numbers and texts, with names that one could type."""
    if isinstance(value, Tensor | np.ndarray | np.generic | int | float | complex | str):
        yield name, value
    elif depth < DEEPEST and isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str | int):
                yield from leaves(f"{name}[{key!r}]", item, depth + 1)
    elif depth < DEEPEST and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(f"{name}[{index}]", item, depth + 1)


def look_at(value: Any) -> Seen | None:
    """A copy of the value; None for what cannot be compared. A number of Python is as precise as float32: most come from there."""
    if isinstance(value, str):
        return Seen(value)
    if isinstance(value, Tensor):
        return None if is_lazy(value) else look_at_tensor(value)
    array = np.array(value)
    if array.dtype.kind not in "biufc":
        return None
    if isinstance(value, float | complex) and not isinstance(value, np.generic):
        return Seen(array, ROUNDING[torch.float32])
    return Seen(array, 0.0 if array.dtype.kind in "biu" else rounding_of(torch.from_numpy(array.reshape(-1)[:0]).dtype))


def look_at_tensor(value: Tensor) -> Seen:
    """A copy of the whole value, wherever it is."""
    value = value.detach()
    if value.layout is not torch.strided:
        value = value.to_dense()
    floating = value.is_floating_point() or value.is_complex()
    rounding = rounding_of(value.dtype) if floating else 0.0
    if floating and value.element_size() < 4:
        value = value.float()  # numpy has no bfloat16
    return Seen(value.clone().resolve_conj().resolve_neg().cpu().numpy(), rounding)  # `numpy` pins the memory of its own tensor


def rounding_of(dtype: torch.dtype) -> float:
    return ROUNDING.get(dtype.to_real(), 1e-1)
