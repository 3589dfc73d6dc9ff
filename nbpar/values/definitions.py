"""Kinds of what a notebook defines: functions, closures and classes. They travel by value and are patched like data."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbpar.values.kinds import EMPTY, Fixed, Kind, changed_entries, join_entries, same, same_dict, slots, split_entries

if TYPE_CHECKING:
    from nbpar.values.pickling import Pickler


class CellKind(Kind):
    """The cells of closures, so that two closures go on sharing one and `nonlocal` counts on."""

    def snap(self, o: Any, port: Any = None) -> Any:
        try:
            return o.cell_contents
        except ValueError:
            return EMPTY

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        new = self.snap(o)
        return None if new is old else (() if new is EMPTY else (new,))

    def patch(self, o: Any, p: Any) -> None:
        if p:
            o.cell_contents = p[0]
        else:
            del o.cell_contents

    def children(self, o: Any) -> Iterable[Any]:
        return (self.snap(o),)

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return types.CellType, ()

    def split(self, p: Any) -> tuple[Any, list[Any]]:
        return len(p), list(p)

    def join(self, shape: Any, slots: list[Any]) -> Any:
        return tuple(slots)


class FunctionKind(Kind):
    """A function of the notebook: its code, defaults and attributes. Its globals are the namespace; its cells are cells."""

    def snap(self, o: Any, port: Any = None) -> Any:
        return o.__code__, o.__defaults__, o.__kwdefaults__, dict(o.__dict__)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        new = self.snap(o)
        return None if old is not None and same(new[:3], old[:3]) and same_dict(new[3], old[3]) else new

    def patch(self, o: Any, p: Any) -> None:
        o.__code__, o.__defaults__, o.__kwdefaults__ = p[:3]
        o.__dict__.clear()
        o.__dict__.update(p[3])

    def children(self, o: Any) -> Iterable[Any]:
        yield from o.__closure__ or ()
        yield from o.__defaults__ or ()
        yield from (o.__kwdefaults__ or {}).values()
        yield from o.__dict__.values()
        yield from o.__annotations__.values()

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return pickler.function(o)


class ClassKind(Kind):
    """A class of the notebook: the attributes set on it. Its instances keep being instances."""

    SKIP = frozenset({"__dict__", "__weakref__", "__doc__", "__slots__", "_abc_impl", "__abstractmethods__", "__module__"})

    def snap(self, o: Any, port: Any = None) -> Any:
        named = slots(o)
        return {key: value for key, value in vars(o).items() if key not in self.SKIP and key not in named}

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        new = self.snap(o)
        return None if old is not None and same_dict(new, old) else changed_entries(new, old or {})

    def patch(self, o: Any, p: Any) -> None:
        gone = p[0] if p[2] is None else [key for key in self.snap(o) if key not in p[2]]
        for key in gone:
            type.__delattr__(o, key)
        for key, value in p[1].items():
            type.__setattr__(o, key, value)

    def children(self, o: Any) -> Iterable[Any]:
        yield from o.__bases__
        yield from vars(o).values()

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return pickler.notebook_class(o)

    def split(self, p: Any) -> tuple[Any, list[Any]]:
        return split_entries(p)

    def join(self, shape: Any, slots: list[Any]) -> Any:
        return join_entries(shape, slots)


class EnumKind(Fixed):
    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return pickler.notebook_class(o)


CELL, FUNCTION, CLASS = CellKind(), FunctionKind(), ClassKind()
ENUM = EnumKind(lambda o: vars(o).values())
METHOD = Fixed(lambda o: (o.__func__, o.__self__))
PROPERTY = Fixed(lambda o: (o.fget, o.fset, o.fdel))
WRAPPED = Fixed(lambda o: (o.__func__,))  # static and class methods
