"""The notebook's side: what a cell reads goes to the ranks, what it changed comes back in place."""

from __future__ import annotations

import pickle
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nbpar.errors import CannotTravel
from nbpar.values import wire
from nbpar.values.differences import find_out
from nbpar.values.names import RESULT, persons, results
from nbpar.values.pool import Buffer, Pool
from nbpar.values.rank_values import RankGroup, RankValues, check_size
from nbpar.values.reading import Read
from nbpar.values.refs import Absent, RankRef, checkpoint
from nbpar.values.table import Port, Table
from nbpar.values.writing import write

Ask = Callable[[bytes], list[Sequence[Buffer]]]
SWEEP_OBJECTS, SWEEP_BYTES = 256, 1 << 26  # growth after which what nobody uses any more is looked for


@dataclass(frozen=True)
class Packed:
    """What goes to the ranks. frames: the same for all; extra: by rank, its own values; notes: for the person."""

    frames: list[Buffer]
    extra: dict[int, list[Buffer]]
    notes: list[str]
    bytes: int


@dataclass(frozen=True)
class Merged:
    """What came back. names: of the variables bound; result: the last expression's value, if it was asked for."""

    notes: list[str]
    names: set[str]
    bytes: int
    result: Any = None


class KernelPort(Port):
    def __init__(self, namespace: dict[str, Any], size: int) -> None:
        super().__init__(namespace)
        self.size = size
        self.reading = False  # what all ranks agree on
        self.sent: dict[str, RankGroup] = {}  # groups of which each rank is to get its own
        self.group: RankGroup | None = None  # that of the cell being merged
        self.notes: list[str] = []
        self.anew: Collection[str] = frozenset()
        self.refs: weakref.WeakValueDictionary[str, RankRef] = weakref.WeakValueDictionary()
        self.released: list[str] = []
        self._detached: dict[int, Any] = {}

    def new_key(self, name: str) -> str:
        return f"notebook:{uuid.uuid4().hex}"

    def stayed(self, name: str, type: str, reason: str) -> None:
        self.notes.append(f"{name} ({type}) stays in the notebook. {reason}")

    def stand_in(self, key: str, name: str, type: str, reason: str, *facts: Any) -> Any:
        ref = self.refs.get(key)
        if ref is None:
            ref = self.refs[key] = RankRef(key, name, type, reason, *facts)
            weakref.finalize(ref, self.released.append, key)
            self.notes.append(f"{name} ({type}) stays on the ranks. {reason}")
        return ref

    def resolve(self, key: str, ref: Absent) -> Any:
        return next((o for o, args in self.staying.values() if args[0] == key), ref)

    def sends(self, group: RankGroup) -> None:
        if group.size != self.size:
            raise CannotTravel(f"it holds values of {group.size} ranks, and this world has {self.size}")
        self.sent[group.id] = group

    def fill_gap(self, key: Any) -> RankValues:
        """What the notebook gets in a slot in which the ranks differ."""
        assert self.group
        container = self.table.objs[key[1]]
        names = [name for name, value in self.namespace.items() if value is container]
        return RankValues(f"a value in {names[0]}" if names else "a value", key, self.group)

    def adopt(self, names: dict[str, Any]) -> None:
        """Some `__setstate__` may need them before all is loaded. Not those of one rank's own values."""
        for name, value in names.items() if self.reading else ():
            self.namespace.setdefault(name, value)

    def came_detached(self, tensor: Any) -> None:
        key = id(tensor)
        self._detached[key] = weakref.ref(tensor, lambda _: self._detached.pop(key, None))

    def writes_tensor(self, tensor: Any, graph: bool) -> None:
        if (graph or id(tensor) in self._detached) and self.label not in self.anew:
            self.notes.append(f"{self.label} goes to the ranks without the graph that it was computed by.")


class KernelEnd:
    """namespace: the notebook's; size: ranks of the world; shared: whether all ranks are on this host."""

    def __init__(self, namespace: dict[str, Any], size: int, *, shared: bool = True) -> None:
        self.namespace, self.size = namespace, size
        self.port = KernelPort(namespace, size)
        self.pool = Pool(shared, range(size))
        self.forget()

    def forget(self) -> None:
        """Nothing is known to be the same on the ranks any more: the next cell's values go out in full."""
        self.epoch, self.sequence = uuid.uuid4().hex[:12], 0
        self.table = Table(self.port)
        self.port.staying.clear()
        self.pool.close()  # a rank may still be reading it
        self._floor, self._moved = 0, 0

    def holds(self, ref: RankRef) -> bool:
        """Whether the value is on these ranks."""
        return ref._key in self.port.refs

    def lost(self, saved: Collection[str] = ()) -> str:
        """What is lost with these ranks, in words; empty if nothing is. saved: names of what is not."""
        mine = persons(self.namespace).values()
        held = {id(self.table.objs[number]) for number in self._live(mine)} | set(map(id, mine))
        lost = [ref for ref in self.port.refs.values() if id(ref) in held and ref.name not in saved]
        return " ".join(sorted(f"{ref.name}, which stayed on the ranks, is lost. {checkpoint(ref)}" for ref in lost))

    def _live(self, values: Iterable[Any]) -> set[int]:
        """Numbers of the known objects that these values lead to."""
        return self.table.reachable([0, 1, *self.table.known(values)])

    def pack(self, reads: Iterable[str], *, cell: int, everything: bool = False, anew: Collection[str] = frozenset()) -> Packed:
        """reads: the cell's names; everything: it may reach any variable. cell: its number, for the ranks' own use.

        anew: names that the cell gives a new value before it uses them: nothing needs to be said about their old one.
        """
        self.port.anew = anew
        mine = persons(self.namespace)
        for name in results(self.namespace, set(reads) - set(anew)):
            self.port.notes.append(
                f"{name} does not go to the ranks, where it is not what the notebook has. Give the value a name."
            )
        names = mine if everything else {name: mine[name] for name in reads if name in mine}
        if not everything:
            for name, value in list(names.items()):
                if isinstance(value, RankValues):
                    if name in anew and value.size != self.size:
                        del names[name]
                    else:
                        check_size(name, value, self.size)
        dead = self._sweep(mine)
        self.port.sent.clear()
        released, self.port.released[:] = list(self.port.released), []
        written = write(self.table, names, follow=True)
        self.sequence += 1
        head = self.epoch, self.sequence, dead, released
        frames = wire.frames(head, written, self.pool)
        written.commit(self.table)
        moved = wire.size(frames, wire.head(frames)[1])
        self._moved += moved
        extra: dict[int, list[Buffer]] = {}
        if self.port.sent:
            extra = {rank: [self._own_pickles(rank)] for rank in range(self.size)}
        return Packed(frames, extra, self._take_notes(), moved + sum(len(own[0]) for own in extra.values()))

    def _own_pickles(self, rank: int) -> bytes:
        own = {id: group.frozen[rank] for id, group in self.port.sent.items() if rank in group.frozen}
        return pickle.dumps({id: (blob, tuple(map(bytes, buffers))) for id, (blob, _, buffers) in own.items()}, 5)

    def _sweep(self, mine: dict[str, Any]) -> list[int]:
        """Numbers of known objects that no variable leads to any more: both sides let go of them."""
        grown = len(self.table) >= 2 * self._floor + SWEEP_OBJECTS or self._moved >= SWEEP_BYTES
        if not grown and not self.port.refs:  # what stays on the ranks may be large
            return []
        live = self._live(mine.values())
        dead = [number for number in range(len(self.table)) if number not in live]
        if dead:
            self.table.drop(dead)
        self._floor, self._moved = len(self.table), 0
        return dead

    def _take_notes(self) -> list[str]:
        notes, self.port.notes = list(dict.fromkeys(self.port.notes)), []
        return notes

    def agree(self, replies: Sequence[Sequence[Buffer]]) -> bool:
        """Whether all ranks replied, and alike."""
        return all(replies) and len({wire.head(reply)[0][0] for reply in replies}) == 1

    def alike(self, replies: Sequence[Sequence[Buffer]], ask: Ask, ranks: Sequence[int]) -> bool:
        """Whether all ranks replied, and hold equal values, though they may have come to them in different ways."""
        if not all(replies) or self.agree(replies):
            return all(replies)
        plan, _, notes = find_out(lambda question: [wire.head(each)[0] for each in ask(pickle.dumps(question))], ranks)
        return not (plan.own or plan.slots or notes)  # what came apart and no variable leads to is of no interest

    def merge(
        self,
        replies: Sequence[Sequence[Buffer]],
        ask: Ask,
        *,
        out: Collection[str] | None = None,
        keep: Collection[str] = frozenset(),
        ranks: Sequence[int],
    ) -> Merged:
        """Brings a cell's changes into the namespace, in place.

        replies: what the ranks' `reply` made, in the order of `ranks`; ask: puts a request to all these ranks.
        """
        self.pool.release()
        heads = wire.heads(replies)
        for rank, head in zip(ranks, heads, strict=True):
            self.pool.returned(rank, head[-1])
        if len({head[0] for head in heads}) > 1:
            return self._merge_different(ask, ranks)
        frames = list(replies[0])
        (_, deleted, stale, failed, _), envelope = wire.head(frames)
        if envelope == (wire.NO_BODY,):
            frames = list(ask(pickle.dumps(("body", ranks[0])))[0])
            envelope = wire.head(frames)[1]
        found = self._read(frames, envelope)
        for number in stale:
            self.table.snaps[number] = None
        if failed or found.failed or len(ranks) < self.size:
            self.forget()
        return self._settle(found, deleted, failed, ask, wire.size(frames, envelope))

    def _read(self, frames: Sequence[Buffer], envelope: tuple[Any, ...]) -> Read:
        self.port.reading = True
        try:
            return wire.body(self.table, frames, envelope)
        finally:
            self.port.reading = False

    def _settle(self, found: Read, deleted: Iterable[str], failed: Iterable[tuple[str, str]], ask: Ask, moved: int) -> Merged:
        for name, reason in failed:
            self.port.notes.append(f"{name or 'a value'} could not be rebuilt on the ranks: {reason}.")
        lost = [(name, f"It could not be rebuilt in the notebook: {reason}.") for name, reason in found.failed if name]
        if lost:
            for fields in wire.head(ask(pickle.dumps(("keep", lost)))[0])[0]:
                found.names[fields[1]] = self.port.stand_in(*fields)
        if behind := [name for name, value in persons(self.namespace).items() if any(value is old for old in found.left)]:
            self.port.notes.append(f"{', '.join(behind)}: as before this cell, as what it belongs to stays on the ranks.")
        for name, reason in found.failed:
            if not name:
                self.port.notes.append(f"a change could not be made in the notebook: {reason}.")
        anew = {id(old): new for old, new in found.replaced}
        found.names.update({n: anew[id(v)] for n, v in persons(self.namespace).items() if id(v) in anew and n not in found.names})
        result = found.names.pop(RESULT, None)
        self.namespace.update(found.names)
        for name in deleted:
            self.namespace.pop(name, None)
        self._moved += moved
        return Merged(self._take_notes(), set(found.names), moved, result)

    def _merge_different(self, ask: Ask, ranks: Sequence[int]) -> Merged:
        """What is equal on all ranks as usual; the rest as RankValues."""

        def heads(*question: Any) -> list[Any]:
            return [wire.head(answer)[0] for answer in ask(pickle.dumps(question))]

        plan, deleted, notes = find_out(lambda question: heads(*question), ranks)
        answers = ask(pickle.dumps(("bodies", plan)))
        frozen, digests = {}, set()
        for rank, answer in zip(ranks, answers, strict=True):
            digest, blob, numbers, buffers = wire.head(answer)[0]
            digests.add(digest)
            frozen[rank] = blob, tuple(self.table.objs[number] for number in numbers), tuple(buffers)
        self.port.group = RankGroup(uuid.uuid4().hex, self.size, frozen, self.port)
        found = self._read(answers[0], wire.head(answers[0])[1])
        found.names.update({name: RankValues(name, ("name", name), self.port.group) for name in plan.own})
        self.port.group = None
        if plan.apart or plan.slots or len(digests) > 1 or found.failed or len(ranks) < self.size:
            self.forget()
        self.port.notes += notes
        moved = sum(sum(memoryview(frame).nbytes for frame in answer) for answer in answers)
        return self._settle(found, deleted, (), ask, moved)
