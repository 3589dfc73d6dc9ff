"""What a call leaves on its modules: buffers and attributes, kept aside, put back and compared."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OWN = ("_parameters", "_modules", "_buffers")
CONTAINERS = (list, dict, set, collections.deque)
PLAIN = (bool, int, float, str)
TORCHS = frozenset(vars(nn.Module()))  # attributes that every module has
QUICK = frozenset((*CONTAINERS, collections.OrderedDict))


@dataclass(frozen=True)
class Place:
    """A tensor on a module: the module's place among `modules()`, and the name there."""

    module: int
    name: str


def shallow(value: Any) -> Any:
    if type(value) in QUICK:  # a module has ten of them, mostly empty: `copy.copy` takes 5 µs for each
        return value.copy()
    return copy.copy(value) if isinstance(value, CONTAINERS) else value


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple | set | collections.deque):
        for item in value:
            yield from tensors(item)


class State:
    """All of a module's buffers, by identity and value, and attributes, containers copied."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.attributes = [
            {name: shallow(value) for name, value in module.__dict__.items() if name not in OWN} for module in modules
        ]
        self.buffers = [
            {name: (value, None if value is None else value.detach().clone()) for name, value in module._buffers.items()}
            for module in modules
        ]
        self.parameters = [dict(module._parameters) for module in modules]

    def put_back(self) -> None:
        for module, attributes, buffers, parameters in zip(
            self.modules, self.attributes, self.buffers, self.parameters, strict=True
        ):
            own = module.__dict__
            for name in [name for name in own if name not in attributes and name not in OWN]:
                del own[name]
            for name, value in attributes.items():
                now = own.get(name)
                if isinstance(value, CONTAINERS):
                    if type(now) is not type(value) or not same_items(now, value):
                        own[name] = shallow(value)
                elif now is not value or name not in own:
                    own[name] = value
            put_entries(module._parameters, parameters)
            put_entries(module._buffers, {name: tensor for name, (tensor, _) in buffers.items()})
            for tensor, value in buffers.values():
                if tensor is not None and value is not None:
                    with torch.no_grad():
                        tensor.copy_(value)

    def left(self) -> Left:
        """What is on the modules now."""
        changed: dict[Place, Tensor] = {}
        numbers: list[dict[str, Any]] = []
        contained: str | None = None
        for at, (module, attributes, buffers) in enumerate(zip(self.modules, self.attributes, self.buffers, strict=True)):
            own: dict[str, Any] = {}
            for name, value in module.__dict__.items():
                if isinstance(value, CONTAINERS):
                    if value and contained is None and name not in OWN and not name.endswith("_hooks"):
                        known = {id(tensor) for tensor in tensors(attributes.get(name))}
                        if any(id(tensor) not in known for tensor in tensors(value)):
                            contained = name
                elif isinstance(value, PLAIN):
                    own[name] = value
                elif isinstance(value, Tensor) and attributes.get(name) is not value:
                    changed[Place(at, name)] = value
            numbers.append(own)
            for name, value in module._buffers.items():
                tensor, before = buffers.get(name, (None, None))
                if value is not None and (tensor is not value or before is None or not equal(before, value)):
                    changed[Place(at, name)] = value
        return Left(changed, numbers, contained)


class Attributes:
    """Modules' attributes alone, by identity, and their own containers' contents: little work, for what is rarely put back."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.before = [(module, dict(vars(module)), _containers(module)) for module in modules]

    def put_back(self) -> None:
        for module, attributes, containers in self.before:
            now = vars(module)
            if not same_items(now, attributes) or any(not same_items(now[name], value) for name, value in containers.items()):
                now.clear()
                now.update({**attributes, **containers})


def _containers(module: nn.Module) -> dict[str, Any]:
    """A program's own; those of torch are its hooks, weights and parts."""
    return {k: shallow(v) for k, v in vars(module).items() if isinstance(v, CONTAINERS) and k not in TORCHS}


@dataclass(frozen=True)
class Left:
    """What a call left on modules. tensors: that are new or differ. numbers: numbers and words among the attributes of each.

    contained: the name of a container that has got a tensor, if there is one.
    """

    tensors: dict[Place, Tensor]
    numbers: list[dict[str, Any]]
    contained: str | None


def put_entries(now: Any, before: dict[str, Any]) -> None:
    """Make a module's dictionary hold what it held before; a scripted module's is not a dict."""
    for name in [name for name in list(now.keys()) if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def same_items(a: Any, b: Any) -> bool:
    """Whether two containers hold the very same objects, in order."""
    if len(a) != len(b):
        return False
    if not a:
        return True
    if isinstance(a, dict):
        return all(x is y for x, y in zip(a, b, strict=True)) and all(x is y for x, y in zip(a.values(), b.values(), strict=True))
    return a == b if isinstance(a, set) else all(x is y for x, y in zip(a, b, strict=True))


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def get(modules: Sequence[nn.Module], place: Place) -> Tensor | None:
    module = modules[place.module]
    value = module._buffers[place.name] if place.name in module._buffers else module.__dict__.get(place.name)
    return value if isinstance(value, Tensor) else None


def put(modules: Sequence[nn.Module], place: Place, value: Tensor) -> None:
    """In place where it was a buffer of this shape, so that whoever holds it sees the change."""
    module = modules[place.module]
    if place.name not in module._buffers:
        module.__dict__[place.name] = value
        return
    buffer = module._buffers[place.name]
    if buffer is not None and buffer.shape == value.shape and not value.requires_grad:
        with torch.no_grad():
            buffer.copy_(value)
    else:
        module._buffers[place.name] = value
