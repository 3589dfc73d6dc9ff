"""When the ranks' replies differ: what exactly does, asked of the ranks in four questions.

changes   which variables, which known objects
digests   of their content: equal ones merge as usual; a patch of one shape may differ in some of its slots only
reach     for known objects that came to differ otherwise: what leads to them; all of it becomes each rank's own
bodies    what is equal, with gaps where slots differ; and each rank's own values, in one pickle per rank
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128_digest

from nbpar.values import kinds, wire
from nbpar.values.choice import CHOICES, kind_of
from nbpar.values.pickling import ContentPickler, GroupPickler
from nbpar.values.rank_values import Key
from nbpar.values.writing import Selection, Written, write

if TYPE_CHECKING:
    from nbpar.values.pool import Buffer
    from nbpar.values.rank_end import RankEnd

Digest = bytes | None


@dataclass(frozen=True)
class Changes:
    """names: bound or rebound; deleted: gone; patches, vacated: numbers of known objects changed, or to be sent anew."""

    names: frozenset[str]
    deleted: frozenset[str]
    patches: frozenset[int]
    vacated: frozenset[int]


@dataclass(frozen=True)
class Digests:
    """names: by variable, None where it does not exist. patches: by number, of the shape and of each slot."""

    names: dict[str, Digest]
    patches: dict[int, tuple[Digest, list[bytes]]]


@dataclass(frozen=True)
class Plan:
    """equal: variables that merge; own: variables of which each rank has its own; slots: by known object, the slots that
    differ; left: known objects whose changes do not merge; apart: known objects that are each rank's own from now on."""

    equal: frozenset[str]
    own: frozenset[str]
    slots: dict[int, list[int]]
    left: frozenset[int]
    apart: frozenset[int]
    speaker: int  # the rank whose word counts for what is equal


class Gap:
    """Written where a slot's value differs; read as RankValues."""

    def __init__(self, key: Key) -> None:
        self.key = key


class GapKind(kinds.Fixed):
    def reduce(self, o: Gap, pickler: Any) -> Any:
        return fill_gap, (pickler.port, o.key)


def fill_gap(port: Any, key: Key) -> Any:
    return port.fill_gap(key)


CHOICES[Gap] = GapKind()


# ---- a rank's answers -------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """A rank's half of the talk, about one reply."""

    end: RankEnd
    written: Written
    changed: dict[str, Any]
    deleted: list[str]
    now: dict[str, Any] = field(default_factory=dict)

    def changes(self) -> Changes:
        written = self.written
        return Changes(frozenset(written.names), frozenset(self.deleted), frozenset(written.patches), frozenset(written.vacated))

    def value(self, name: str) -> Any:
        return self.changed.get(name, self.now.get(name, kinds.EMPTY))

    def digests(self, names: Sequence[str], numbers: Sequence[int]) -> Digests:
        return Digests({name: self.content(self.value(name)) for name in names}, {n: self.of_patch(n) for n in numbers})

    def of_patch(self, number: int) -> tuple[Digest, list[bytes]]:
        if number not in self.written.patches:
            return None, []
        patch = self.written.patches[number]
        split = self.end.table.kinds[number].split(patch)
        shape, slots = (patch, []) if split is None else split
        return self.content(shape), [self.content(value) or b"" for value in slots]

    def content(self, value: Any) -> Digest:
        """A digest of what a value holds; of a known object, which one it is."""
        if value is kinds.EMPTY:
            return None
        table = self.end.table
        blob, parts, buffers = ContentPickler(table.port, self.known()).frozen(value)
        numbers = repr(table.known(parts)).encode()
        return xxh3_128_digest(blob + numbers + b"".join(xxh3_128_digest(buffer) for buffer in buffers))

    def known(self) -> set[int]:
        """Ids of the objects that are the same everywhere as far as the table goes."""
        vacated = set(self.written.vacated)
        return {key for key, (number, _) in self.end.table.memo.items() if number not in vacated}

    def reach(self, numbers: Sequence[int]) -> tuple[frozenset[int], frozenset[str]]:
        """What leads to these known objects now: known objects, and variables."""
        table = self.end.table
        apart = set(numbers)
        holds = {i: self.held(table.objs[i]) for i in self.written.patches}
        holds.update((i, set(refs)) for i, refs in enumerate(table.refs) if i not in holds)
        grown = True
        while grown:
            more = {i for i, held in holds.items() if i not in apart and not held.isdisjoint(apart)}
            grown = bool(more)
            apart |= more
        names = {name for name, value in {**self.now, **self.changed}.items() if not self.held_by(value).isdisjoint(apart)}
        return frozenset(apart), frozenset(names)

    def held_by(self, value: Any) -> set[int]:
        number = self.end.table.number(value)
        return {number} if number is not None else self.held(value)

    def held(self, value: Any) -> set[int]:
        """Numbers of the known objects that a value leads to, through objects that are not known; not through globals."""
        table, found, seen = self.end.table, set[int](), {id(value)}
        stack = list(children(value))
        while stack:
            o = stack.pop()
            if id(o) in seen:
                continue
            seen.add(id(o))
            number = table.number(o)
            if number is None:
                stack.extend(children(o))
            else:
                found.add(number)
        return found

    def bodies(self, plan: Plan) -> list[Buffer]:
        """What is equal, as a message with its digest in the head; then this rank's own values."""
        end = self.end
        names = {name: self.value(name) for name in self.changed if name in plan.equal}
        slots = {number: {i: Gap(("slot", number, i)) for i in places} for number, places in plan.slots.items()}
        roots = [*end.bound.values(), *self.now.values()]
        written = write(end.table, names, roots=roots, bound=names, selection=Selection(plan.left, slots))
        own: dict[Key, Any] = {("name", name): self.value(name) for name in plan.own}
        for number, places in plan.slots.items():
            values = end.table.kinds[number].split(self.written.patches[number])[1]  # type: ignore[index]
            own.update({("slot", number, i): values[i] for i in places})
        own = {key: value for key, value in sorted(own.items(), key=repr) if value is not kinds.EMPTY}
        apart = plan.apart | set(self.written.vacated)
        known = {key for key, (number, _) in end.table.memo.items() if number not in apart}
        blob, parts, buffers = GroupPickler(end.port, known).frozen(own)
        end.pending = written
        head = written.digest(), blob, end.table.known(parts), [bytes(buffer) for buffer in buffers]
        return wire.frames(head, written, end.pool) if end.rank == plan.speaker else wire.bare(head)


def children(o: Any) -> Sequence[Any]:
    kind = kind_of(o)
    return () if kind is None else list(kind.children(o))


# ---- the notebook's questions -------------------------------------------------------------------------------------------------


def find_out(ask: Callable[[Any], list[Any]], ranks: Sequence[int]) -> tuple[Plan, list[str], list[str]]:
    """The plan, the variables deleted on all ranks, and notes. ask: puts a question to all ranks; ranks: their numbers."""
    every: list[Changes] = ask(("changes",))
    names, deleted = frozenset().union(*(c.names for c in every)), frozenset().union(*(c.deleted for c in every))
    patches = frozenset().union(*(c.patches for c in every))
    gone_everywhere = frozenset.intersection(*(c.deleted for c in every))
    digests: list[Digests] = ask(("digests", sorted(names), sorted(patches)))
    first, rest = digests[0], digests[1:]
    equal = {name for name in names if all(other.names[name] == first.names[name] for other in rest)}
    slots: dict[int, list[int]] = {}
    hard: set[int] = set()
    for number in patches:
        shape, values = first.patches[number]
        same_shape = shape is not None and all(other.patches[number][0] == shape for other in rest)
        if not same_shape or any(len(other.patches[number][1]) != len(values) for other in rest):
            hard.add(number)
            continue
        differing = [i for i, value in enumerate(values) if any(other.patches[number][1][i] != value for other in rest)]
        if differing:
            slots[number] = differing
    apart: frozenset[int] = frozenset()
    own = set(names) - equal
    if hard:
        reached = ask(("reach", sorted(hard)))
        apart = frozenset().union(*(numbers for numbers, _ in reached))
        own |= frozenset().union(*(held for _, held in reached))
    slots = {number: places for number, places in slots.items() if number not in apart}
    plan = Plan(frozenset(equal - own), frozenset(own), slots, frozenset(apart & patches), apart, ranks[0])
    kept = sorted(deleted - gone_everywhere)
    notes = [f"{name} was deleted on some ranks only; it stays in the notebook." for name in kept]
    for name in sorted(own):
        having = [rank for rank, each in zip(ranks, digests, strict=True) if each.names.get(name, b"") is not None]
        if len(having) < len(ranks) and name not in kept:
            notes.append(f"{name} exists on ranks {having} only.")
    return plan, sorted(gone_everywhere), notes
