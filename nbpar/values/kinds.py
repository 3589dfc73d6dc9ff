"""How objects of one kind are compared with what the other side has, and brought up to date in place.

A kind has: `snap(o, port)`: what to compare with next time; `diff(o, old, port)`: None if nothing changed, a patch, or REPLACE
where the object cannot be patched (`old` None: everything is new); `patch(o, p)`; `children(o)`: the objects it holds;
`reduce(o, pickler)`: how it is pickled the first time. Comparison is by identity: what an object holds is compared on its own.
"""

from __future__ import annotations

import collections
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbpar.values.memory import same_items

if TYPE_CHECKING:
    from nbpar.values.pickling import Pickler

REPLACE: Any = object()  # a patch that means: send it as a new object
EMPTY: Any = object()


def same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Equal lengths are the caller's business."""
    return all(map(operator.is_, a, b))


def all_same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Of containers side by side: whether each holds the very same objects in the same order."""
    flat = itertools.chain.from_iterable
    return list(map(len, a)) == list(map(len, b)) and same_items(list(flat(a)), list(flat(b)))


def same_dict(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return len(a) == len(b) and same(a.values(), b.values()) and same(a, b)


def changed_entries(new: dict[Any, Any], old: dict[Any, Any]) -> tuple[list[Any], dict[Any, Any], list[Any] | None]:
    """(keys gone, entries new or changed, all keys if their order is not what follows from that)."""
    gone = [key for key in old if key not in new]
    entries = {key: value for key, value in new.items() if key not in old or old[key] is not value}
    order = [key for key in old if key in new] + [key for key in new if key not in old]
    return gone, entries, None if old and same(order, new) else list(new)


def split_entries(p: Any) -> tuple[Any, list[Any]]:
    gone, entries, order = p
    return (gone, list(entries), order), list(entries.values())


def join_entries(shape: Any, slots: list[Any]) -> Any:
    gone, keys, order = shape
    return gone, dict(zip(keys, slots, strict=True)), order


class Kind:
    """The base: known by its identity. order: of its patches among a message's. changes: whether it ever does.

    shares: whether it may have its memory in common with an object of another library. stays: whether it stays where it is
    when what holds it stays.
    """

    order = 2
    changes = True
    shares = False
    stays = False

    def snap(self, o: Any, port: Any = None) -> Any:
        return None

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        return None

    def all_unchanged(self, objects: Sequence[Any], old: Sequence[Any]) -> bool:
        """Whether none of many has changed, where that is found faster than one by one."""
        return False

    def patch(self, o: Any, p: Any) -> None: ...

    def snap_patched(self, o: Any, p: Any, port: Any = None) -> Any:
        """The snapshot after a patch that both sides have seen."""
        return self.snap(o, port)

    def after_patches(self, table: Any, numbers: list[int]) -> None: ...

    def children(self, o: Any) -> Iterable[Any]:
        return ()

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return pickler.native(o)

    def split(self, p: Any) -> tuple[Any, list[Any]] | None:
        """A patch as its shape, which ranks must agree on, and slots, in which their values may differ."""
        return None

    def join(self, shape: Any, slots: list[Any]) -> Any:
        raise NotImplementedError


class Fixed(Kind):
    """Never changes, but may hold what does."""

    changes = False

    def __init__(self, children: Callable[[Any], Iterable[Any]] = lambda o: ()) -> None:
        self._children = children

    def children(self, o: Any) -> Iterable[Any]:
        return self._children(o)


class ListKind(Kind):
    """list and deque: (length that stays, new tail)."""

    def snap(self, o: Any, port: Any = None) -> Any:
        return list(o)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        if old is None:
            return 0, list(o)
        if self.unchanged(o, old):
            return None
        kept = 0
        for a, b in zip(o, old, strict=False):
            if a is not b:
                break
            kept += 1
        items = list(o)
        return kept, items[kept:]

    def unchanged(self, o: Any, old: list[Any]) -> bool:
        return same_items(o, old)

    def all_unchanged(self, objects: Sequence[Any], old: Sequence[Any]) -> bool:
        return all_same(objects, old)

    def patch(self, o: Any, p: Any) -> None:
        o[p[0] :] = p[1]

    def children(self, o: Any) -> Iterable[Any]:
        return o

    def split(self, p: Any) -> tuple[Any, list[Any]]:
        return (p[0], len(p[1])), p[1]

    def join(self, shape: Any, slots: list[Any]) -> Any:
        return shape[0], slots


class DequeKind(ListKind):
    def unchanged(self, o: Any, old: list[Any]) -> bool:
        return len(o) == len(old) and same(o, old)

    def patch(self, o: Any, p: Any) -> None:
        items = list(o)[: p[0]] + p[1]
        o.clear()
        o.extend(items)


class DictKind(Kind):
    """(keys gone, entries new or changed, all keys if their order changed)."""

    items: Any = staticmethod(dict.items)
    values: Any = staticmethod(dict.values)

    def snap(self, o: Any, port: Any = None) -> Any:
        return dict(self.items(o))

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        if not o and not old and old is not None:
            return None
        new = o if type(o) is dict else self.snap(o)
        if old is not None and len(new) == len(old) and same(new.values(), old.values()) and same(new, old):
            return None
        return changed_entries(new, old or {})

    def all_unchanged(self, objects: Sequence[Any], old: Sequence[Any]) -> bool:
        return all_same(objects, old) and all_same(list(map(self.values, objects)), list(map(dict.values, old)))

    def patch(self, o: Any, p: Any) -> None:
        gone, entries, order = p
        for key in gone:
            dict.pop(o, key, None)
        for key, value in entries.items():
            dict.__setitem__(o, key, value)
        if order is not None:
            items = [(key, dict.__getitem__(o, key)) for key in order]
            dict.clear(o)
            for key, value in items:
                dict.__setitem__(o, key, value)

    def children(self, o: Any) -> Iterable[Any]:
        yield from o if type(o) is dict else list(self.items(o))
        yield from dict.values(o)

    def split(self, p: Any) -> tuple[Any, list[Any]]:
        return split_entries(p)

    def join(self, shape: Any, slots: list[Any]) -> Any:
        return join_entries(shape, slots)


class OrderedDictKind(DictKind):
    """By its own methods: the plain ones of dict lose its order."""

    items = staticmethod(collections.OrderedDict.items)
    values = staticmethod(collections.OrderedDict.values)

    def patch(self, o: Any, p: Any) -> None:
        gone, entries, order = p
        for key in gone:
            o.pop(key, None)
        o.update(entries)
        if order is not None:
            for key in set(o) - set(order):
                del o[key]
            for key in order:
                o.move_to_end(key)


class SetKind(Kind):
    def snap(self, o: Any, port: Any = None) -> Any:
        return set(o)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        return None if o == old else (list(o),)

    def patch(self, o: Any, p: Any) -> None:
        o.clear()
        o.update(p[0])

    def children(self, o: Any) -> Iterable[Any]:
        return o


class SubsetKind(SetKind):
    def reduce(self, o: Any, pickler: Pickler) -> Any:
        reduced = pickler.native(o)
        pickler.temporary(reduced[1][0])  # a list made for pickling
        return reduced


class CounterKind(DictKind):
    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return collections.Counter, (), None, None, iter(dict.items(o))


class BytesKind(Kind):
    """bytearray and array.array."""

    def snap(self, o: Any, port: Any = None) -> Any:
        return bytes(o)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        return None if bytes(o) == old else (o[:],)

    def patch(self, o: Any, p: Any) -> None:
        o[:] = p[0]


class AttributesKind(Kind):
    """Any instance with a __dict__ or __slots__: (attributes gone, attributes new or changed, all if their order changed)."""

    def snap(self, o: Any, port: Any = None) -> Any:
        found = dict(getattr(o, "__dict__", ()))
        for slot in slots(type(o)):
            value = getattr(o, slot, EMPTY)
            if value is not EMPTY:
                found[slot] = value
        return found

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        new = self.snap(o)
        return None if old is not None and same_dict(new, old) else changed_entries(new, old or {})

    def patch(self, o: Any, p: Any) -> None:
        gone, entries, order = p
        named, own = slots(type(o)), getattr(o, "__dict__", {})
        for key in gone:
            if key in named:
                object.__delattr__(o, key)
            else:
                own.pop(key, None)
        for key, value in entries.items():
            if key in named:
                object.__setattr__(o, key, value)
            else:
                own[key] = value
        if order is not None:
            kept = {key: own[key] for key in order if key in own}
            own.clear()
            own.update(kept)

    def children(self, o: Any) -> Iterable[Any]:
        yield type(o)
        yield from self.snap(o).values()

    def split(self, p: Any) -> tuple[Any, list[Any]]:
        return split_entries(p)

    def join(self, shape: Any, slots: list[Any]) -> Any:
        return join_entries(shape, slots)


class WithAttributes(Kind):
    """A container class of the person's own: its items and its attributes."""

    def __init__(self, items: Kind) -> None:
        self.parts = (items, ATTRIBUTES)

    def snap(self, o: Any, port: Any = None) -> Any:
        return [kind.snap(o) for kind in self.parts]

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        found = [kind.diff(o, before) for kind, before in zip(self.parts, old or (None, None), strict=True)]
        return found if any(p is not None for p in found) else None

    def patch(self, o: Any, p: Any) -> None:
        for kind, part in zip(self.parts, p, strict=True):
            if part is not None:
                kind.patch(o, part)

    def children(self, o: Any) -> Iterable[Any]:
        for kind in self.parts:
            yield from kind.children(o)


class StateKind(Kind):
    """An object with a state that can be asked for and set."""

    def __init__(self, get: Callable[[Any], Any], put: Callable[[Any, Any], None]) -> None:
        self.get, self.put = get, put

    def snap(self, o: Any, port: Any = None) -> Any:
        return self.get(o)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        new = self.get(o)
        return None if new == old else (new,)

    def patch(self, o: Any, p: Any) -> None:
        self.put(o, p[0])


def slots(cls: type) -> tuple[str, ...]:
    """Names of a class's slots, inherited ones included."""
    try:
        return SLOTS[cls]
    except KeyError:
        found: list[str] = []
        for base in cls.__mro__:
            own = base.__dict__.get("__slots__", ())
            for name in (own,) if isinstance(own, str) else own:
                mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
                if name not in ("__dict__", "__weakref__"):
                    found.append(mangled)
        SLOTS[cls] = tuple(found)
        return SLOTS[cls]


SLOTS: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()
FIXED, MEMBERS = Fixed(), Fixed(lambda o: o)  # members: of a tuple or frozenset
LIST, DEQUE, DICT, ORDERED_DICT = ListKind(), DequeKind(), DictKind(), OrderedDictKind()
SET, SUBSET, COUNTER, BYTES, ATTRIBUTES = SetKind(), SubsetKind(), CounterKind(), BytesKind(), AttributesKind()
