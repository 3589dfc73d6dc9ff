"""Writes a message: names and their values, new objects in full, changed ones as patches.

The pickle memo is the identity table: a pickler that starts with the table's numbers writes a known object as a reference of
two to five bytes, and an unpickler that starts with the same numbers reads it as its own object. New objects get the next
numbers on both sides. Every name and every patch is a pickle of its own on that one memo, so that a failure has a name.
"""

from __future__ import annotations

import array
import itertools
import operator
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_128_digest

from nbpar.values import kinds
from nbpar.values.choice import kind_of
from nbpar.values.definitions import FUNCTION
from nbpar.values.pickling import Pickler, StandIn
from nbpar.values.table import Hole, Table, global_names

MANY = 64  # known objects that one holds


class Again(Exception):
    """Something was found on the way that changes how an earlier part has to be written."""


@dataclass
class Written:
    """What `write` made, and what the table has to learn once the other side has it.

    lendable: indices of buffers that a reader may map. vacated: known objects that could not be patched, each with its new number.
    """

    stream: bytes
    new_numbers: bytes
    buffers: list[memoryview]
    lendable: list[int]
    vacated: dict[int, int]
    names: dict[str, Any]
    new: list[Any]
    patches: dict[int, Any]

    def digest(self) -> bytes:
        return xxh3_128_digest(self.stream + self.new_numbers + repr(self.vacated).encode())

    def commit(self, table: Table) -> None:
        for number in self.vacated:
            table.vacate(number, written=True)
        table.add(self.new)  # first: the patched ones may hold them
        for number, patch in self.patches.items():
            table.refresh(number, patch)
        table.port.settled()


@dataclass(frozen=True)
class Selection:
    """What of the changes is not simply sent.

    skip: known objects whose changes are not; slots: by known object and position in its patch, what to send there instead;
    limit: bytes of large data with which a name stays behind, unless it is among those asked for.
    """

    skip: frozenset[int] = frozenset()
    slots: Mapping[int, Mapping[int, Any]] = field(default_factory=dict)
    limit: int | None = None
    asked: Container[str] = ()


ALL = Selection()


def write(
    table: Table,
    names: Mapping[str, Any],
    *,
    roots: Iterable[Any] = (),
    bound: Mapping[str, Any] | None = None,
    follow: bool = False,
    selection: Selection = ALL,
) -> Written:
    """names: what to send by name. roots: objects whose changes are to be sent as well. bound: names to send as well if their
    object has to be sent anew. follow: send also the names that the notebook's functions look up."""
    vacated: set[int] = set(table.port.leaving)
    for _ in range(1000):
        anew = {name: value for name, value in (bound or {}).items() if table.number(value) in vacated} if vacated else {}
        try:
            return _Writer(table, vacated, selection).run({**names, **anew}, list(roots), follow)
        except Again:
            continue
    raise RuntimeError("values keep changing while they are written")


class _Writer:
    def __init__(self, table: Table, vacated: set[int], selection: Selection) -> None:
        self.table, self.vacated, self.selection = table, vacated, selection
        self.forced = self._holders_of_vacated()
        self.pickler = Pickler(table.port)
        memo = table.memo
        if vacated:
            memo = {key: entry for key, entry in memo.items() if entry[0] not in vacated}
            memo.update((id(hole), (number, hole)) for number, hole in ((number, Hole()) for number in vacated))
        self.pickler.memo = memo
        self.written: Container[int] = memo.keys()
        self.known = len(memo)
        self.seen: set[int] = set()
        self.patches: dict[int, Any] = {}
        self.to_write: list[tuple[int, Any]] = []
        self.new: list[tuple[int, Any]] = []
        self.called: set[str] = set()  # names that functions look up
        self.wrote_new = False

    def _holders_of_vacated(self) -> set[int]:
        """Objects that hold what is sent anew: sent anew themselves if they cannot change, else whole."""
        forced: set[int] = set()
        grown = bool(self.vacated)
        while grown:
            grown = False
            for number, refs in enumerate(self.table.refs):
                if number not in self.vacated and number not in forced and not self.vacated.isdisjoint(refs):
                    fixed = isinstance(self.table.kinds[number], kinds.Fixed)
                    (self.vacated if fixed else forced).add(number)
                    grown = True
        return forced

    def run(self, names: dict[str, Any], roots: list[Any], follow: bool) -> Written:
        table, namespace = self.table, self.table.port.namespace
        self.visit(table.known((*roots, *names.values())))
        self.write_names(names)
        while True:
            self.write_patches()
            self.find_new()
            more = {name: namespace[name] for name in self.called if name not in names and name in namespace} if follow else {}
            self.called.clear()
            if more:
                names.update(more)
                self.visit(table.known(more.values()))
                self.write_names(more)
            elif not self.to_write:
                break
        self.pickler.memo = {}
        return Written(
            self.pickler.file.getvalue(),
            array.array("I", [number for number, _ in self.new]).tobytes(),
            self.pickler.buffers,
            self.pickler.lendable,
            self.sent_anew(),
            names,
            [o for _, o in self.new],
            self.patches,
        )

    def sent_anew(self) -> dict[int, int]:
        """The vacated numbers, each with the number under which its object is sent anew; 0 if it is not sent."""
        begin = len(self.table)
        numbers = {id(o): begin + i for i, (_, o) in enumerate(self.new)} if self.vacated else {}
        return {number: numbers.get(id(self.table.objs[number]), 0) for number in sorted(self.vacated)}

    def visit(self, numbers: Iterable[int]) -> None:
        """Finds the changes of known objects, along what they held and what they hold."""
        table, seen, port = self.table, self.seen, self.table.port
        objs, all_kinds, snaps, refs = table.objs, table.kinds, table.snaps, table.refs
        not_sent, forced = self.selection.skip | self.vacated, self.forced
        stack = list(numbers)
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            kind = all_kinds[number]
            held = refs[number]
            if len(held) > MANY and not forced and not not_sent and self.as_they_were(held):
                seen.update(held)
                stack.extend(itertools.chain.from_iterable(map(refs.__getitem__, held)))
            else:
                stack.extend(held)
            if not kind.changes or number in not_sent:
                continue
            o = objs[number]
            if kind is FUNCTION:
                self.called.update(global_names(o, port.namespace))
            patch = kind.diff(o, None if number in forced else snaps[number], port)
            if patch is None:
                continue
            if patch is kinds.REPLACE:
                self.vacated.add(number)
                raise Again
            if number in self.selection.slots:
                instead = self.selection.slots[number]
                shape, values = kind.split(patch) or (None, [])
                patch = kind.join(shape, [instead.get(i, value) for i, value in enumerate(values)])
            self.patches[number] = patch
            self.to_write.append((number, patch))
            stack.extend(table.known(kind.children(o)))

    def as_they_were(self, numbers: tuple[int, ...]) -> bool:
        """Whether known objects of one kind hold what they held, found in one go for all of them. False: look at each."""
        table, of = self.table, operator.itemgetter(*numbers)
        (kind, *others), old = set(of(table.kinds)), of(table.snaps)
        return not others and type(None) not in set(map(type, old)) and kind.all_unchanged(of(table.objs), old)

    def write_names(self, names: dict[str, Any]) -> None:
        self.write_stand_ins(names)
        simple = {name: value for name, value in names.items() if id(value) in self.written or kind_of(value) is None}
        if simple:
            self.dump(simple, simple)
        for name, value in names.items():
            if name not in simple:
                self.table.port.label = name
                self.wrote_new = True
                before = len(self.pickler.buffers)
                self.dump((name, value), value)
                self.check_size(name, value, sum(buffer.nbytes for buffer in self.pickler.buffers[before:]))

    def write_stand_ins(self, names: dict[str, Any]) -> None:
        staying = self.table.port.staying
        for value in names.values() if staying else ():
            if id(value) in staying and id(value) not in self.written:
                self.wrote_new = True
                stand_in = StandIn(value)
                unit = {"": stand_in}
                self.dump(unit, unit)
                memo = self.pickler.memo.copy()
                memo[id(value)] = memo.pop(id(stand_in))[0], value
                self.pickler.memo = memo
                self.written = memo.keys()

    def check_size(self, name: str, value: Any, size: int) -> None:
        limit = self.selection.limit
        if limit is not None and size > limit and name not in self.selection.asked:
            reason = f"It is large; --out {name} brings it to the notebook."
            self.table.port.stay(value, reason, name, size)
            raise Again

    def write_patches(self) -> None:
        self.wrote_new |= bool(self.to_write)
        while self.to_write:
            number, patch = self.to_write.pop(0)
            self.pickler.temporary(patch)
            if isinstance(patch, tuple):
                self.pickler.temporary(*(part for part in patch if type(part) in (list, dict, tuple)))
            self.dump((number, patch), self.table.objs[number])

    def dump(self, unit: Any, culprit: Any) -> None:
        self.pickler.temporary(unit)
        try:
            self.pickler.dump(unit)
        except Exception as error:
            if culprit is unit:
                raise
            self.table.port.stay(culprit, error)
            number = self.table.number(culprit)
            if number is not None:
                self.vacated.add(number)
            raise Again from error

    def find_new(self) -> None:
        """The objects that were written in full since the last time; what they hold may have changed too."""
        if not self.wrote_new:
            return
        self.wrote_new = False
        memo = self.pickler.memo.copy()
        temporary = set(map(id, self.pickler.made_for_pickling))
        found = [
            (number, o) for number, o in memo.values() if number >= self.known and id(o) not in temporary and kind_of(o) is not None
        ]
        self.known = len(memo)
        self.written = memo.keys()
        found.sort(key=lambda entry: entry[0])
        self.new += found
        for _, o in found:
            kind = kind_of(o)
            assert kind
            if id(o) in self.table.port.staying:
                continue
            if kind is FUNCTION:
                self.called.update(global_names(o, self.table.port.namespace))
            self.visit(self.table.known(kind.children(o)))
