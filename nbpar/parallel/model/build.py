"""Models made inside a cell: what another rank holds is dropped as soon as its module is made: no rank ever needs a whole model.

Every rank runs every constructor, so that values and random streams are those of one process. Until the model is first called
nobody knows how it will be divided: what is made goes to the rank that holds least, and moves when the model is placed.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbpar import heap

from .channel import channel
from .home import is_split, loosen
from .place import put, weak_lists_off

SMALL = 1 << 26  # bytes of parameters that a cell makes before anything is dropped
_ALONE = 2  # references to a storage that only one tensor and the storage's Python object have


class Build:
    """limit: bytes of parameters that the cell makes before any are dropped."""

    def __init__(self, limit: int = SMALL) -> None:
        self.limit = limit
        self._held: list[int] = []  # bytes by rank
        self._bytes = 0
        self._waiting: list[weakref.ref[nn.Module]] | None = []  # made before the limit was reached
        self._wrapped: list[tuple[type, Any]] = []

    @property
    def dropping(self) -> bool:
        return self._waiting is None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, every constructor of a module ends here; also those of classes that the cell defines."""
        self._held = [0] * channel().size
        for kind in _kinds():
            self._wrap(kind)
        build = self

        def __init_subclass__(cls: type[nn.Module], **kwargs: Any) -> None:
            super(nn.Module, cls).__init_subclass__(**kwargs)
            build._wrap(cls)

        setattr(nn.Module, "__init_subclass__", classmethod(__init_subclass__))  # type: ignore[arg-type]  # noqa: B010
        try:
            yield
        finally:
            del nn.Module.__init_subclass__
            for kind, original in reversed(self._wrapped):
                setattr(kind, "__init__", original)  # noqa: B010
            self._wrapped.clear()
            if self.dropping:
                heap.keep_blocks(heap.LARGEST)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """While it lasts, classes are as they were written."""
        wrappers = [(kind, vars(kind)["__init__"]) for kind, _ in self._wrapped]
        for kind, original in reversed(self._wrapped):
            setattr(kind, "__init__", original)  # noqa: B010
        try:
            yield
        finally:
            for kind, wrapper in wrappers:
                setattr(kind, "__init__", wrapper)  # noqa: B010

    def _wrap(self, kind: type[nn.Module]) -> None:
        original: Callable[..., None] | None = vars(kind).get("__init__")
        if original is None:
            return

        @functools.wraps(original)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            outermost: Any = type(module).__init__
            if outermost is __init__:  # else a subclass goes on
                self._made(module)

        self._wrapped.append((kind, original))
        setattr(kind, "__init__", __init__)  # noqa: B010

    def _made(self, module: nn.Module) -> None:
        if channel().in_step or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        with torch._C.DisableTorchFunction():
            if self._waiting is None:
                self._drop(module)
                return
            self._waiting.append(weakref.ref(module))
            self._bytes += sum(value.nbytes for value in _parameters(module))
            if self._bytes > self.limit:
                heap.keep_blocks(1 << 20)
                waiting, self._waiting = self._waiting, None
                for ref in waiting:
                    if (made := ref()) is not None:
                        self._drop(made)

    def _drop(self, module: nn.Module) -> None:
        """This module's own parameters go to one rank."""
        values = [value for value in _parameters(module) if _alone(value)]
        if not values or getattr(module, "sparse", False) is True or isinstance(module, torch.jit.ScriptModule):
            return
        rank = self._held.index(min(self._held))
        with weak_lists_off([module]):
            for value in values:
                self._held[rank] += value.nbytes
                put(value, rank, again=False)
                loosen(value)


def _kinds() -> Iterator[type[nn.Module]]:
    """Module classes with constructors of their own: torch's layers, and everybody else's."""
    todo, seen = [nn.Module], set[type]()
    while todo:
        for kind in todo.pop().__subclasses__():
            if kind not in seen:
                seen.add(kind)
                todo.append(kind)
                if kind.__module__.startswith("torch.nn.modules.") or kind.__module__.partition(".")[0] != "torch":
                    yield kind


def _parameters(module: nn.Module) -> list[Tensor]:
    values = [value for value in module._parameters.values() if value is not None and not nn.parameter.is_lazy(value)]
    return [value for value in values if value.layout is torch.strided and value.is_leaf and not is_split(value)]


def _alone(value: Tensor) -> bool:
    """Whether nothing else is on this memory."""
    storage = value.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) <= _ALONE
