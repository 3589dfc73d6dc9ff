"""What is known of a module that runs as one step, and whether it still holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from .home import owner
from .probe import Outline
from .pure import Read
from .remote import Input

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NO_CONTENTS = frozenset(nn.Module().__dict__) - {"_parameters", "_buffers", "_modules"}  # hooks, looked at apart, and their flags
_kind = attrgetter("shape", "dtype", "requires_grad")

Place = tuple[dict[str, Any], str, Tensor]  # a parameter: its module's dict of them, its name there


@dataclass
class Unit:
    """A module that one rank holds, as it was when it was looked at. It is so still while all objects that its parts refer to are
    the same and its parameters are of the same kind: calls are many, and changes few.

    rank: of its tensors. placed: whether it was put there, so that it stays. inner: its parts but itself, so that nothing here
    keeps it alive. outlines: by what else they depend on.
    """

    module: InitVar[nn.Module]
    rank: int
    placed: bool
    inner: list[nn.Module]
    places: list[Place]
    buffers: list[Tensor]
    hooks: list[Any]
    constants: Any
    read: Read
    outlines: dict[Any, Outline | None] = field(default_factory=dict)

    def __post_init__(self, module: nn.Module) -> None:
        self.parameters = [value for _, _, value in self.places]
        self.seen = tuple(map(seen, self.parameters))
        self.inputs = list(map(Input.of, self.parameters))
        self._kinds = list(map(_kind, self.parameters))
        self._tables = [vars(part) for part in (module, *self.inner)]
        self._views = [view for table in self._tables for view in _views(table)]
        self._held = [*chain.from_iterable(self._views)]

    def unchanged(self, module: nn.Module) -> bool:
        return (
            all(map(is_, map(vars, (module, *self.inner)), self._tables))
            and sum(map(len, self._views)) == len(self._held)
            and all(map(is_, chain.from_iterable(self._views), self._held))
            and not any(self.hooks)
            and self.read.unchanged()
            and list(map(_kind, self.parameters)) == self._kinds
            and (self.placed or {owner(value) for value in (*self.parameters, *self.buffers)} == {self.rank})
        )


def places_of(parts: Iterable[nn.Module]) -> list[Place]:
    """The parameters that `parameters` gives, each where it is first."""
    found: dict[int, Place] = {}
    for part in parts:
        for name, value in part._parameters.items():
            if value is not None:
                found.setdefault(id(value), (part._parameters, name, value))
    return list(found.values())


def hooks_of(part: nn.Module) -> list[Any]:
    """Hooks that people set see every operation, on every rank."""
    return [part.__dict__[name] for name in HOOKS if name in part.__dict__]


def _views(table: dict[str, Any]) -> list[Any]:
    """Of what a module's attributes are, and of what is in those that are containers."""
    inner = [value for name, value in table.items() if isinstance(value, (list, dict, set)) and name not in _NO_CONTENTS]
    return [one.values() if isinstance(one, dict) else one for one in (table, *inner)]


def watched(parameters: Sequence[Tensor]) -> bool:
    """Hooks of parameters."""
    return any(value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None) for value in parameters)


def seen(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype, value.requires_grad


class Lent:
    """While it lasts, modules use these for their parameters of those names."""

    def __init__(self, values: Sequence[Place]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._own = [table[name] for table, name, _ in self._values]
        for table, name, value in self._values:
            table[name] = value

    def __exit__(self, *_: object) -> None:
        for place, mine in zip(self._values, self._own, strict=True):
            place[0][place[1]] = mine
