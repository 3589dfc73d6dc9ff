"""What stays on the ranks because what holds it does, of objects that the notebook knew until then."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbpar.values import definitions
from nbpar.values.choice import kind_of
from nbpar.values.kinds import Kind
from nbpar.values.table import Table


@dataclass(frozen=True)
class Stay:
    """A variable that stays. size: bytes of its tensors, if known; the same on all ranks."""

    reason: str = "It stayed as --keep asked."
    size: int = 0


def stays(names: Collection[str] | Mapping[str, Stay]) -> Mapping[str, Stay]:
    return names if isinstance(names, Mapping) else dict.fromkeys(names, Stay())


def leaving(table: Table, staying: Iterable[Any]) -> frozenset[int]:
    """Numbers of the known objects that are not known any more when these stay: they, their tensors and modules, and whatever
    leads to those. What holds only the values that stay themselves gets their stand-ins instead."""
    stay = list(staying)
    themselves = set(table.known(stay))
    reached = {number for value in stay for o in held_by(value) if (number := table.number(o)) is not None}
    tensors = {number for number in reached if table.kinds[number].stays}
    inside = {number for number in table.reachable(tensors) if table.kinds[number].stays}
    inside |= {number for o in leading(stay) if (number := table.number(o)) is not None}
    inside -= themselves
    holds = {number: set(table.known(kind.children(o))) for number, o, kind in _holders(table)} if inside else {}
    more = inside
    while more:
        more = {number for number, held in holds.items() if number not in inside and not held.isdisjoint(inside - themselves)}
        inside |= more
    return frozenset(inside | themselves)


def leading(stay: Sequence[Any]) -> Iterator[Any]:
    """Of what staying values lead to, what leads to tensors or modules, new ones too: an optimiser's state has those of a cell."""
    held = [pair for value in stay for pair in walk(value)]
    parents: dict[int, list[Any]] = {}
    for o, below in held:
        for child in below:
            parents.setdefault(id(child), []).append(o)
    todo = [o for o, _ in held if (kind := kind_of(o)) and kind.stays]
    seen = {*map(id, stay), *map(id, todo)}
    while todo:
        for parent in parents.get(id(todo.pop()), ()):
            if id(parent) not in seen:
                seen.add(id(parent))
                todo.append(parent)
                yield parent


def held_by(value: Any) -> Iterator[Any]:
    """What a value leads to, itself included. Not what classes hold, nor the globals of functions."""
    return (o for o, _ in walk(value))


def walk(value: Any) -> Iterator[tuple[Any, list[Any]]]:
    """What a value leads to, each with what it holds itself."""
    seen: set[int] = set()
    held = []  # ids stay unique while their objects live
    todo = [value]
    while todo:
        o = todo.pop()
        kind = kind_of(o)
        if kind is None or id(o) in seen or isinstance(o, type):
            continue
        seen.add(id(o))
        below = list(kind.children(o))
        held.append((o, below))
        yield o, below
        todo.extend(below)


def _holders(table: Table) -> Iterator[tuple[int, Any, Kind]]:
    for number, (o, kind) in enumerate(zip(table.objs, table.kinds, strict=True)):
        if number > 1 and kind is not definitions.CLASS:
            yield number, o, kind
