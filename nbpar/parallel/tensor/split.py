"""The tensors of the notebook become sharded under the same objects."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nbpar.errors import Unsupported
from nbpar.parallel.model.reach import modules, optimisers, reach

from .above import become
from .columns import columns, why_whole
from .ranks import ranks
from .sharded import Sharded, as_parameter, layout, shard

MOST_ATTEMPTS = 2  # of splitting a module whose parameters a graph holds
ALIVE = "a graph that uses it was alive; delete the loss of an earlier step before"


class Split:
    """What was split so far, and what was not."""

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self.namespace = namespace
        self.considered: WeakSet[nn.Module] = WeakSet()
        self._attempts: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._held: dict[str, weakref.ref[nn.Module]] = {}  # modules by the names of their sharded parameters
        self._whole: dict[str, str] = {}  # reasons by name
        self.replaced: list[Tensor] = []  # all come home, whether the cell's names still lead to them or not

    def everything(self) -> None:
        """All models that the namespace leads to, and the state of their optimisers."""
        for name, model in modules(self.namespace):
            self.model(name, model)
        for optimiser in optimisers(self.namespace):
            self.state(optimiser)

    def state(self, optimiser: torch.optim.Optimizer) -> None:
        """The state of a sharded parameter that has its shape is split as it is."""
        for value, state in optimiser.state.items():
            shards = layout(value)
            if shards is None:
                continue
            for thing in state.values():
                if type(thing) is Tensor and thing.shape == value.shape and thing.is_contiguous() and thing.is_leaf:
                    self.replaced += put(thing, shards.dim)

    def model(self, name: str, model: nn.Module) -> None:
        """All of its modules that were not considered before. Called again for those where something stood in the way."""
        if isinstance(model, torch.jit.ScriptModule):
            self._whole[name] = "a ScriptModule is compiled"
            self.considered.add(model)
            return
        self._collect = True
        embedded = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding) and columns(part)}
        for path, part in reversed(list(model.named_modules())):
            inner = all(child in self.considered for child in part.children())
            if part not in self.considered and self._part(f"{name}.{path}".rstrip("."), part, embedded) and inner:
                self.considered.add(part)

    def _part(self, name: str, module: nn.Module, embedded: set[int]) -> bool:
        """A module's own parameters. False if it is to be tried again at its next call. embedded: tied to an Embedding."""
        own = {key: value for key, value in module._parameters.items() if value is not None}
        if any(is_lazy(value) for value in own.values()):
            return False
        dims = columns(module)
        if own and not dims:
            self._whole[f"{name} ({type(module).__name__})"] = why_whole(module)
        attempt = self._attempts[module] = self._attempts.get(module, 0) + 1
        stuck = False
        for key, dim in dims.items():
            if key not in own:
                continue
            self._held[f"{name}.{key}"] = weakref.ref(module)
            if not isinstance(own[key], Sharded):
                reason = self.put(own[key], 1 if id(own[key]) in embedded else dim)
                stuck |= reason == ALIVE
                self._whole[f"{name}.{key}"] = reason
        return not stuck or attempt == MOST_ATTEMPTS

    def put(self, value: Tensor, dim: int) -> str:
        """Why it stays whole; empty if it was split."""
        if value.shape[dim] < ranks().size:
            dim = 1 - dim if value.dim() == 2 else dim
        if value.shape[dim] < ranks().size:
            return f"fewer columns than ranks ({value.shape[dim]})"
        if value.layout is not torch.strided or value.is_meta or not value.is_contiguous():
            return "its memory is not dense"
        if not value.is_leaf:
            return "it is computed from others"
        if self.shared(value):
            return "another variable has the same memory"
        done = put(value, dim, self._collect)
        self.replaced += done
        self._collect &= bool(done)
        return "" if done else ALIVE

    def shared(self, value: Tensor) -> bool:
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes:
            return True
        if torch._C._storage_Use_Count(storage._cdata) <= 2:  # the tensor's and the one of `storage`
            return False
        return any(
            isinstance(thing, Tensor)
            and thing is not value
            and not isinstance(thing, Sharded)
            and thing.layout is torch.strided
            and thing.untyped_storage()._cdata == storage._cdata
            for thing in reach(self.namespace)
        )

    def held(self) -> dict[str, Tensor]:
        """Parameters that were split, by name."""
        values = {name: getattr(module(), name.rpartition(".")[2], None) for name, module in self._held.items()}
        return {name: value for name, value in values.items() if isinstance(value, Sharded)}

    def parts(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """By parameter: the dimension along which it is split now, and how much of it each rank holds."""
        found = {name: layout(value) for name, value in self.held().items()}
        return {name: (shards.dim, ranks().sizes(shards.shape[shards.dim])) for name, shards in found.items() if shards}

    def lines(self) -> list[str]:
        """What is whole on every rank, and why."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self._whole.items():
            if reason:
                reasons.setdefault(reason, []).append(name)
        assigned = [name for name, value in self.held().items() if layout(value) is None]
        if assigned:
            reasons["its .data was assigned"] = assigned
        lines = []
        for reason, names in reasons.items():
            several = f" and {len(names) - 3} more" if len(names) > 4 else ""
            lines.append(f"whole on every rank: {', '.join(names[: 3 if several else 4])}{several}: {reason}")
        return lines


def put(value: Tensor, dim: int, collect: bool = True) -> list[Tensor]:
    """Make it sharded, with its gradient; gives both, nothing if a graph holds it. collect: whether garbage may hold the graph."""
    gradient, value.grad = value.grad, None
    storage = value.untyped_storage()
    with torch.inference_mode(False), torch.no_grad():
        made = as_parameter(value, shard(value, dim))
    shards = made._shards
    done, more = replaced(value, made, collect), []
    del made
    if done:
        shards.spare = storage
        if storage.resizable() and torch._C._storage_Use_Count(storage._cdata) == 1:
            storage.resize_(0)
        if gradient is not None and type(gradient) is Tensor and gradient.is_contiguous():
            more = put(gradient, dim)
    value.grad = gradient
    return [value, *more] if done else []


@contextmanager
def whole_for_a_call(module: nn.Module) -> Iterator[None]:
    """While it lasts, its parameters are whole on every rank. Raises Unsupported if a graph holds one."""
    held = [(value, value._shards, value.grad) for value in module.parameters() if isinstance(value, Sharded)]
    for value, shards, _ in held:
        value.grad = None
        if not replaced(value, nn.Parameter(shards.value(), value.requires_grad)):
            raise Unsupported(f"{type(module).__name__} cannot be whole for a call: {ALIVE}")
    try:
        yield
    finally:
        for value, shards, gradient in held:
            become(value, as_parameter(value, Sharded(shards)))
            value.grad = gradient


def replaced(value: Tensor, made: Tensor, collect: bool = True) -> bool:
    """Whether a tensor could be replaced; the graph that stands in the way may be held by a reference cycle."""
    for again in range(2 if collect else 1):
        if again:
            gc.collect()
        try:
            become(value, made)
        except RuntimeError:
            continue
        return True
    return False
