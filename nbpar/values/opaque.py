"""Objects whose pickled state is not what they hold: sent whole, compared by that state's digest.

What `__reduce__` or `__getstate__` returns is partly made for the occasion. Such temporary parts must not become objects that
both sides know: changes to them would go unseen. So an opaque object travels as a pickle of its own, in which the parts that it
really holds (by the garbage collector's account) are numbered holes; those are known objects like any other.
"""

from __future__ import annotations

import gc
import io
import pickle
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

from nbpar.values import kinds
from nbpar.values.pool import chunk

if TYPE_CHECKING:
    from nbpar.values.pickling import Pickler
    from nbpar.values.table import Port

WHOLE = frozenset({"pandas", "matplotlib", "PIL"})  # libraries whose objects hold nothing that a person shares
Frozen = tuple[bytes, tuple[Any, ...], tuple[Any, ...]]  # pickle, what fills its holes, its large buffers


class OpaqueKind(kinds.Kind):
    """The snapshot is two summaries: of how it is made, and of all. The patch is (attributes that stay, frozen state)."""

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        reduced = pickler.plain(o)
        if not isinstance(reduced, tuple):
            return reduced
        if pickler.private:
            return pickler.native_of(reduced)
        made, stated = pickler.port.freeze(o, reduced)
        pickler.port.fingerprints[id(o)] = summary(made), summary(made, stated)
        pickler.temporary(*made, *(stated or ()))
        port = pickler.port
        state = None if stated is None else (port, *stated)
        return thaw_object, (port, *made), state, None, None, thaw_state

    def snap(self, o: Any, port: Any = None) -> Any:
        known = port.fingerprints.get(id(o))
        if known is not None:
            return known
        try:
            made, stated = port.freeze(o)
        except Exception:
            return None
        return summary(made), summary(made, stated)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        try:
            made, stated = port.freeze(o)
        except Exception:
            return kinds.REPLACE  # it cannot be pickled any more: it will stay behind, and say so
        new = summary(made), summary(made, stated)
        if new == old:
            return None
        own = getattr(o, "__dict__", None)
        if stated is not None and (old is None or new[0] == old[0]):
            port.fingerprints[id(o)] = new
            return None if own is None else list(own), (port, *stated)
        return kinds.REPLACE if not own else (dict(own), None)

    def patch(self, o: Any, p: Any) -> None:
        stay, frozen = p
        if frozen is not None:
            thaw_state(o, frozen)
        if isinstance(stay, dict):
            o.__dict__.update(stay)
        for key in set(getattr(o, "__dict__", ())) - set(stay or ()) if stay is not None else ():
            del o.__dict__[key]

    def children(self, o: Any) -> Any:
        yield type(o)
        for part in real_parts(o).values():
            yield part
            if type(part) is tuple:  # perhaps made anew where the object was rebuilt
                yield from part


OPAQUE = OpaqueKind()


def take_apart(o: Any, reduced: tuple[Any, ...]) -> tuple[Any, Any]:
    function, args, state, items, pairs, setter = (reduced + (None,) * 4)[:6]
    items, pairs = None if items is None else list(items), None if pairs is None else list(pairs)
    rest = (state, items, pairs, setter)
    return (function, args), None if all(part is None for part in rest) else rest


def real_parts(o: Any) -> dict[int, Any]:
    """The objects that o really holds, by id."""
    from nbpar.values.choice import kind_of

    if type(o).__module__.partition(".")[0] in WHOLE:
        return {}
    own = getattr(o, "__dict__", None)
    held = [*gc.get_referents(o), *(own.values() if isinstance(own, dict) else ())]
    return {id(part): part for part in held if part is not own and part is not type(o) and kind_of(part) is not None}


def summary(*frozen: Frozen | None) -> tuple[bytes, tuple[int, ...]]:
    digest, parts = xxh3_128(), list[int]()
    for each in frozen:
        if each is not None:
            digest.update(each[0])
            for buffer in each[2]:
                digest.update(buffer)
            parts += map(id, each[1])
    return digest.digest(), tuple(parts)


class Thawer(pickle.Unpickler):
    def __init__(self, port: Port, frozen: Frozen, owner: Any = None) -> None:
        super().__init__(io.BytesIO(frozen[0]), buffers=[chunk(buffer).whole() for buffer in frozen[2]])
        self.holes = {"port": port, "namespace": port.namespace, "self": owner}
        self.parts = frozen[1]

    def persistent_load(self, hole: Any) -> Any:
        return self.parts[hole] if isinstance(hole, int) else self.holes[hole]


def thaw_object(port: Port, *frozen: Any) -> Any:
    function, args = Thawer(port, frozen).load()
    return function(*args)


def thaw_state(o: Any, frozen: Any) -> None:
    port, *rest = frozen
    state, items, pairs, setter = Thawer(port, tuple(rest), o).load()
    if items is not None:
        o.extend(items) if hasattr(o, "extend") else [o.append(item) for item in items]
    for key, value in pairs or ():
        o[key] = value
    if state is None:
        return
    if setter is not None:
        setter(o, state)
    elif hasattr(o, "__setstate__"):
        o.__setstate__(state)
    else:
        attributes, slotted = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        o.__dict__.update(attributes or {})
        for key, value in (slotted or {}).items():
            object.__setattr__(o, key, value)
