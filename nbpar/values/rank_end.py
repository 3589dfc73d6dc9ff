"""A rank's side: what came before a cell, and what the cell made of it."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_128_digest

from nbpar.errors import NbparError
from nbpar.values import wire
from nbpar.values.choice import kind_of
from nbpar.values.differences import Comparison
from nbpar.values.kinds import Kind
from nbpar.values.names import RESULT, persons
from nbpar.values.opaque import Frozen, Thawer
from nbpar.values.pickling import GroupPickler
from nbpar.values.pool import Buffer, Maps, Pool
from nbpar.values.rank_values import OwnGroup, OwnKind
from nbpar.values.reading import Read
from nbpar.values.refs import Absent, KernelRef, LostRef
from nbpar.values.staying import Stay, leaving, stays
from nbpar.values.table import Port, Table
from nbpar.values.writing import Selection, Written, write

LARGE = 1 << 30  # bytes of data; a new variable with more stays on the ranks unless it was asked for
SHORT_BODY = 1 << 20  # bytes; a longer reply without shared memory waits until it is asked for


class RankPort(Port):
    def __init__(self, namespace: dict[str, Any], rank: int) -> None:
        super().__init__(namespace)
        self.rank = rank
        self.kept: dict[str, Any] = {}  # what stayed here, by the key that the notebook has
        self.own_pickles: dict[str, tuple[bytes, tuple[Any, ...]]] = {}
        self.count = 0

    def new_key(self, name: str) -> str:
        self.count += 1
        return f"{self.class_prefix}:{name}:{self.count}"

    def stay(self, o: Any, why: Exception | str, name: str = "", size: int = 0) -> None:
        super().stay(o, why, name, size)
        self.kept[self.staying[id(o)][1][0]] = o

    def stand_in(self, key: str, name: str, type: str, reason: str, *facts: Any) -> Any:
        return KernelRef(key, name, type, reason, *facts)

    def resolve(self, key: str, ref: Absent) -> Any:
        if key not in self.kept:
            return LostRef.of(ref)
        o = self.kept[key]
        self.staying[id(o)] = o, (key, ref.name, ref.type, ref.reason, ref.size, ref.mode)
        return o

    def release(self, keys: Iterable[str]) -> None:
        """The notebook has no stand-in for these any more."""
        for key in keys:
            self.staying.pop(id(self.kept.pop(key, None)), None)

    def own_group(self, id: str, parts: dict[int, tuple[Any, ...]]) -> OwnGroup:
        if self.rank not in parts:
            return OwnGroup()
        blob, buffers = self.own_pickles[id]
        return OwnGroup(Thawer(self, (blob, parts[self.rank], buffers)).load())

    def own_value(self, group: OwnGroup, name: str, key: Any) -> Any:
        if key not in group:
            return KernelRef("", name, "RankValues", f"It has no value for rank {self.rank}.")
        self.own.add(id(group[key]))
        return group[key]

    def own_kind(self) -> Kind:
        return OwnKind()

    def freeze_own(self, o: Any) -> Frozen:
        return GroupPickler(self, self.table.memo.keys() - {id(o)}).frozen(o)

    def adopt(self, names: dict[str, Any]) -> None:
        """Some `__setstate__` may need them before all is loaded."""
        for name, value in names.items():
            self.namespace.setdefault(name, value)

    def begin(self, prefix: str) -> None:
        if prefix != self.class_prefix:  # else there was a snapshot of this cell
            self.class_prefix, self.count = prefix, 0
            self._classes.clear()


@dataclass(frozen=True)
class Changes:
    """A cell's variables: now, of these those that may go to the notebook, of these those with a new value; and names deleted."""

    now: dict[str, Any]
    wanted: dict[str, Any]
    changed: dict[str, Any]
    deleted: list[str]


class RankEnd:
    """namespace: where cells run, emptied of the person's names before each; rank, size: of this process in its world."""

    def __init__(self, namespace: dict[str, Any], rank: int, size: int, *, shared: bool = True) -> None:
        self.namespace, self.rank, self.size = namespace, rank, size
        self.port = RankPort(namespace, rank)
        self.table = Table(self.port)
        self.pool = Pool(shared)
        self.epoch, self.sequence = "", 0
        self.bound: dict[str, Any] = {}
        self.returned: list[int] = []  # numbers of lent segments that nothing here uses any more
        self.failed: list[tuple[str, str]] = []
        self.pending: Written | None = None

    def load(self, frames: Sequence[Buffer], extra: Sequence[Buffer] = ()) -> None:
        """Before a cell: brings the namespace to what the notebook's cell reads, and nothing else.

        frames: of `Packed.frames`; extra: of `Packed.extra` for this rank. Raises NbparError if a message was missed.
        """
        (epoch, sequence, dead, released), envelope = wire.head(frames)
        if epoch != self.epoch:
            self.epoch, self.table = epoch, Table(self.port)
            self.port.staying.clear()
        elif sequence != self.sequence + 1:
            raise NbparError(f"rank {self.rank} missed a message with values. Type %parallel restart.")
        elif self.pending:
            self.pending.commit(self.table)
        self.sequence, self.pending, self.port.leaving = sequence, None, frozenset()
        self.pool.release()
        if dead:
            self.table.drop(dead)
        self.port.release(released)
        for name in persons(self.namespace):
            del self.namespace[name]
        self.port.own_pickles = pickle.loads(extra[0]) if extra else {}
        found = self._read(frames, envelope)
        self.port.own_pickles = {}
        self.failed = found.failed
        for name, reason in found.failed:
            if name:
                found.names[name] = KernelRef("", name, "a value", f"It could not be rebuilt on a rank: {reason}.")
        self.namespace.update(found.names)
        self.bound = found.names

    def _read(self, frames: Sequence[Buffer], envelope: tuple[Any, ...]) -> Read:
        """A lent segment that nothing was mapped of is given back at once, another when its map goes."""
        maps: Maps = {}
        found = wire.body(self.table, frames, envelope, maps)
        for place in envelope[2]:
            if place.lent in maps:
                weakref.finalize(maps[place.lent], self.returned.append, place.lent)
            elif place.lent:
                self.returned.append(place.lent)
        return found

    def reply(
        self,
        cell: int,
        *,
        out: Collection[str] | None = None,
        keep: Collection[str] | Mapping[str, Stay] = (),
        result: bool = False,
        mode: str = "each",
    ) -> list[Buffer]:
        """After a cell: what it bound, deleted and changed.

        out: names that may come back, None for all; keep: names that stay here, perhaps with reasons; result: send also the last
        expression's value; mode: the cell's.
        """
        self.port.begin(f"{self.epoch}:{cell}")
        self.port.mode = mode
        changes = self._changes(out, keep)
        wanted, changed = changes.wanted, changes.changed
        if result:
            changed[RESULT] = self.namespace.get(RESULT)
        self.port.leaving = leaving(self.table, self._stay(changed, wanted, stays(keep)))
        written = self._write(changes, out)
        self.pending = written
        self._deleted, self._stale = changes.deleted, self._left_out(written, changes.now) if out is not None else []
        self._comparison = Comparison(self, written, written.names, changes.deleted, wanted)
        return self._answer_body(inline=self.rank == 0)

    def _changes(self, out: Collection[str] | None, keep: Collection[str] = ()) -> Changes:
        now = persons(self.namespace)
        wanted = now if out is None else {name: value for name, value in now.items() if name in out or name in keep}
        changed = {name: value for name, value in wanted.items() if name not in self.bound or self.bound[name] is not value}
        deleted = sorted(name for name in self.bound if name not in now and (out is None or name in out))
        return Changes(now, wanted, changed, deleted)

    def _write(self, changes: Changes, out: Collection[str] | None) -> Written:
        wanted = changes.wanted
        roots = [*self.bound.values(), *wanted.values()] if out is None else list(wanted.values())
        if self.port.staying:
            roots += self.table.objs  # what stayed may have changed anything
        selection = Selection(limit=LARGE, asked=out or ())
        return write(self.table, changes.changed, roots=roots, bound=wanted, follow=out is not None, selection=selection)

    def _stay(self, changed: dict[str, Any], wanted: dict[str, Any], names: Mapping[str, Stay]) -> list[Any]:
        """From now on the notebook has stand-ins for these; those that it had itself are sent as such."""
        staying = []
        for name, stay in names.items():
            value = changed.get(name) if name in changed else wanted.get(name)
            if kind_of(value) is not None and id(value) not in self.port.staying:
                self.port.stay(value, stay.reason, name, stay.size)
                changed[name] = value
                staying.append(value)
        return staying

    def stayed(self) -> dict[str, Stay]:
        """Variables that stay here since an earlier cell."""
        found = persons(self.namespace).items()
        return {name: Stay(self.port.staying[id(value)][1][3]) for name, value in found if id(value) in self.port.staying}

    def snapshot(
        self, cell: int, others: Mapping[int, Any], *, out: Collection[str] | None = None, keep: Mapping[str, Stay]
    ) -> list[Buffer]:
        """What `reply` would give now, in copies, and without learning anything: for a kernel that loses its ranks later.

        others: tensors that are written in the place of some, by their ids. out, keep: as of `reply`.
        """
        from nbpar.values.tensors import written_as

        self.port.begin(f"{self.epoch}:{cell}")
        with self._unlearnt(), written_as(others):
            changes = self._changes(out, keep)
            self.port.leaving = leaving(self.table, self._stay(changes.changed, changes.wanted, keep))
            head: tuple[Any, ...] = (b"snapshot", changes.deleted, [], self.failed, [])
            return [bytes(frame) for frame in wire.frames(head, self._write(changes, out), Pool(shared=False))]

    @contextmanager
    def _unlearnt(self) -> Iterator[None]:
        """What is noted of objects meanwhile is forgotten, and so are the keys that were given: other ranks give none."""
        port = self.port
        staying, kept, count = dict(port.staying), dict(port.kept), port.count
        try:
            yield
        finally:
            port.staying, port.kept, port.count, port.leaving = staying, kept, count, frozenset()
            port.settled()

    def _keep(self, o: Any, name: str, reason: str) -> tuple[Any, ...]:
        """Holds a value that the notebook could not take; the fields of the stand-in."""
        self.port.stay(o, reason, name)
        return self.port.staying[id(o)][1]

    def _left_out(self, written: Written, now: dict[str, Any]) -> list[int]:
        """Known objects that the cell changed and `out` leaves out: the notebook has to send them again."""
        rest = write(
            self.table, {}, roots=[*self.bound.values(), *now.values()], selection=Selection(skip=frozenset(written.patches))
        )
        return sorted({*rest.patches, *rest.vacated} - set(written.vacated))

    def _answer_body(self, inline: bool, however_large: bool = False) -> list[Buffer]:
        assert self.pending
        written = self.pending
        facts = self._deleted, self._stale
        digest = xxh3_128_digest(written.digest() + pickle.dumps(facts))
        large = sum(buffer.nbytes for buffer in written.buffers) > SHORT_BODY and not self.pool.shared
        returned = [self.returned.pop() for _ in range(len(self.returned))]
        head = digest, *facts, self.failed, returned
        return wire.frames(head, written, self.pool) if inline and (however_large or not large) else wire.bare(head)

    def answer(self, request: bytes) -> list[Buffer]:
        """Answers what `KernelEnd.merge` asks."""
        what, *args = pickle.loads(request)
        talk = self._comparison
        if what == "body":
            return self._answer_body(True, True) if self.rank == args[0] else []
        if what == "keep":
            return wire.bare([self._keep(talk.value(name), name, reason) for name, reason in args[0]])
        if what == "bodies":
            return talk.bodies(*args)
        return wire.bare(getattr(talk, what)(*args))
