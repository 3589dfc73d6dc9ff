"""The table of objects that both sides know, by number, and what each of them was like when the sides last agreed."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

from cloudpickle import cloudpickle as internals

from nbpar.values.choice import kind_of
from nbpar.values.kinds import FIXED, Fixed, Kind
from nbpar.values.opaque import Frozen, real_parts, take_apart
from nbpar.values.refs import Absent


class Hole:
    """Takes the place of an object that is not known any more."""


class Port:
    """Object 1 of every table: what a loaded object may ask of the side it is on.

    fingerprints: what memory and opaque objects held when they were last read or written, until the table has taken it over.
    staying: objects that cannot travel, by id, with the stand-in's arguments.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.fingerprints: dict[int, Any] = {}
        self.staying: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        self.table: Table
        self.own: set[int] = set()  # on ranks: ids of own values just loaded, until the table has taken them
        self.to_be_written: set[int] = set()  # ids of storages of parameters, in the message being written
        self.memories: list[Any] = []  # arrays and storages in the message being written
        self._known_memories: list[Any] | None = None  # those of the table
        self.label = ""  # the variable that is being written, for notes
        self.mode = "each"  # of the cell that ran
        self.leaving: frozenset[int] = frozenset()  # numbers of objects that only this side has from now on
        self.class_prefix: str | None = None  # on ranks: the cell
        self._classes: collections.Counter[str] = collections.Counter()

    def freeze(self, o: Any, reduced: Any = None) -> tuple[Frozen, Frozen | None]:
        """An opaque object as two private pickles: how to make it, and its state."""
        from nbpar.values.pickling import Pickler, PrivatePickler

        make, state = take_apart(o, Pickler(self).plain(o) if reduced is None else reduced)
        real = real_parts(o)
        made = PrivatePickler(self, o, real).frozen(make)
        return made, None if state is None else PrivatePickler(self, o, real).frozen(state)

    def settled(self) -> None:
        """The table has taken over what was noted while loading or writing."""
        self.fingerprints.clear()
        self.own.clear()
        self.memories.clear()
        self._known_memories = None
        self.to_be_written.clear()

    def known_memories(self, library: str) -> list[Any]:
        """Known objects that may share their memory with an object of the other library."""
        if self._known_memories is None:
            self._known_memories = [o for o, kind in zip(self.table.objs, self.table.kinds, strict=True) if kind.shares]
        return [o for o in (*self.memories, *self._known_memories) if type(o).__module__.partition(".")[0] == library]

    def own_kind(self) -> Kind:
        raise NotImplementedError

    def name_class(self, cls: type) -> None:
        """Ranks that run the same cell give the same class the same id, so that they can agree on it."""
        if self.class_prefix is not None and cls not in internals._DYNAMIC_CLASS_TRACKER_BY_CLASS:
            name = f"{self.class_prefix}:{cls.__module__}.{cls.__qualname__}"
            self._classes[name] += 1
            internals._lookup_class_or_track(f"{name}:{self._classes[name]}", cls)

    def stay(self, o: Any, why: Exception | str, name: str = "", size: int = 0) -> None:
        """From now on `o` is written as a stand-in."""
        name = name or self.label or "a value"
        reason = why if isinstance(why, str) else f"It cannot be pickled: {first_line(why)}."
        kind = f"{type(o).__module__}.{type(o).__qualname__}"
        self.staying[id(o)] = o, (self.new_key(name), name, kind, reason, size, self.mode)
        self.stayed(name, type(o).__qualname__, reason)

    def absent(self, o: Any) -> Any:
        return stand_in, (self, *self.staying[id(o)][1])

    def new_key(self, name: str) -> str:
        raise NotImplementedError

    def stayed(self, name: str, type: str, reason: str) -> None: ...

    def stand_in(self, key: str, name: str, type: str, reason: str, *facts: Any) -> Any:
        """What this side gets for a value that stays on the other; facts: `Absent`'s further arguments."""
        raise NotImplementedError

    def resolve(self, key: str, ref: Absent) -> Any:
        """This side's own object for a stand-in that comes back."""
        raise NotImplementedError

    def writes_tensor(self, tensor: Any, graph: bool) -> None:
        """A tensor is being written. graph: it has one, which does not travel."""

    def came_detached(self, tensor: Any) -> None:
        """A tensor was read that has a graph on the other side."""

    def adopt(self, names: dict[str, Any]) -> None:
        """Globals that a notebook function came with."""


class Table:
    """Parallel lists by number. refs: the numbers of the known objects that an object holds."""

    def __init__(self, port: Port) -> None:
        self.port = port
        port.table = self
        self.objs: list[Any] = [port.namespace, port]
        self.kinds: list[Kind] = [FIXED, FIXED]
        self.snaps: list[Any] = [None, None]
        self.refs: list[tuple[int, ...]] = [(), ()]
        self.memo = {id(o): (i, o) for i, o in enumerate(self.objs)}
        self.prefix = bytearray(b"\x80\x05") + seed(0) + seed(1)  # a pickle that fills an unpickler's memo

    def __len__(self) -> int:
        return len(self.objs)

    def number(self, o: Any) -> int | None:
        entry = self.memo.get(id(o))
        return None if entry is None else entry[0]

    def add(self, new: Iterable[Any]) -> None:
        begin = len(self.objs)
        for o in new:
            number, kind = len(self.objs), kind_of(o) or FIXED
            own = id(o) in self.port.own
            second = id(o) in self.memo or (own and isinstance(kind, Fixed))  # what is written must not lead to this number
            self.objs.append(o)
            entry = Hole() if second else o
            self.memo[id(entry)] = number, entry
            self.prefix += seed(number)
            if second or id(o) in self.port.staying:
                kind = FIXED
            self.kinds.append(self.port.own_kind() if own and kind is not FIXED else kind)
        for o, kind in zip(self.objs[begin:], self.kinds[begin:], strict=True):
            self.snaps.append(kind.snap(o, self.port))
            self.refs.append(self.known(kind.children(o)))

    def refresh(self, number: int, patch: Any) -> None:
        """After a patch was sent or applied."""
        o, kind = self.objs[number], self.kinds[number]
        self.snaps[number] = kind.snap_patched(o, patch, self.port)
        self.refs[number] = self.known(kind.children(o))

    def known(self, objects: Iterable[Any]) -> tuple[int, ...]:
        memo = self.memo
        return tuple(memo[id(o)][0] for o in objects if id(o) in memo)

    def vacate(self, number: int, *, written: bool = False) -> None:
        """The object is not known any more. On the side that wrote so, those that hold it count as changed altogether."""
        for holder, refs in enumerate(self.refs) if written else ():
            if number in refs:
                self.snaps[holder] = None
        key = id(self.objs[number])
        if key in self.memo and self.memo[key][0] == number:
            del self.memo[key]
        else:  # a second number of an object
            self.memo = {id(entry): (i, entry) for i, entry in self.memo.values() if i != number}
        hole = self.objs[number] = Hole()
        self.memo[id(hole)] = number, hole
        self.kinds[number], self.snaps[number], self.refs[number] = FIXED, None, ()

    def reachable(self, roots: Iterable[int]) -> set[int]:
        """Numbers reached from these, as things were when the sides last agreed."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            number = stack.pop()
            if number not in seen:
                seen.add(number)
                stack.extend(self.refs[number])
        return seen

    def drop(self, dead: Iterable[int]) -> None:
        """Forgets objects and closes the gaps. Both sides do it with the same numbers."""
        gone = set(dead)
        for number in gone:
            self.port.staying.pop(id(self.objs[number]), None)
        stay = [number for number in range(len(self.objs)) if number not in gone]
        renumbered = {old: new for new, old in enumerate(stay)}
        self.objs, self.kinds, self.snaps = ([column[i] for i in stay] for column in (self.objs, self.kinds, self.snaps))
        self.refs = [tuple(renumbered[i] for i in self.refs[old] if i in renumbered) for old in stay]
        self.memo = {id(entry): (renumbered[number], entry) for number, entry in self.memo.values() if number not in gone}
        self.prefix = bytearray(b"\x80\x05" + b"".join(map(seed, range(len(self.objs)))))


def stand_in(port: Port, *args: Any) -> Any:
    return port.stand_in(*args)


def first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text[:200].rstrip(".")


def seed(number: int) -> bytes:
    """Pickle code: ask persistent_load for a number, memoise what it gives, drop it."""
    return b"J" + number.to_bytes(4, "little") + b"Q\x940"


def global_names(function: Any, namespace: dict[str, Any]) -> Iterable[str]:
    """Names that a notebook function looks up when it runs."""
    if function.__globals__ is not namespace:
        return ()
    return internals._extract_code_globals(function.__code__)
