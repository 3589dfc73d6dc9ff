"""The pickler of a message: each object reduced by its kind, what is made for pickling kept apart from what a person holds."""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import cloudpickle
from cloudpickle import cloudpickle as internals

from nbpar.values.choice import CHOICES, kind_of, learn_libraries
from nbpar.values.kinds import EMPTY, Fixed
from nbpar.values.pool import IN_PICKLE

if TYPE_CHECKING:
    from nbpar.values.table import Port


class Pickler(cloudpickle.Pickler):
    """port: object 1 of the table, through which reduced objects reach their side's services when they are loaded.

    buffers: the large buffers, in the order in which loading asks for them; lendable: which of them are new objects' memory that
    is likely only to be read.
    """

    private = False  # within an opaque object
    compares = False  # writes what is compared and not read

    def __init__(self, port: Port) -> None:
        self.file = io.BytesIO()
        self.buffers: list[memoryview] = []
        self.lendable: list[int] = []
        self._new_memory: set[int] = set()
        super().__init__(self.file, protocol=5, buffer_callback=in_band(self.buffers, self.lendable, self._new_memory))
        self.port = port
        self.globals_ref[id(port.namespace)] = port.namespace  # a notebook function's globals are object 0
        self.made_for_pickling: list[Any] = []
        learn_libraries()

    def temporary(self, *objects: Any) -> None:
        """These were made for pickling: they are no objects of the person's, and are not to be known later."""
        self.made_for_pickling.extend(objects)

    def new_memory(self, buffer: pickle.PickleBuffer) -> pickle.PickleBuffer:
        """Marks the memory of a new object, which a reader may map."""
        self._new_memory.add(id(buffer))
        self.temporary(buffer)
        return buffer

    def reducer_override(self, o: Any) -> Any:
        kind = kind_of(o)
        if kind is None:
            return super().reducer_override(o)
        if id(o) in self.port.staying:
            return self._checked(self.port.absent(o))
        try:
            reduced = kind.reduce(o, self)
        except Exception as error:
            if self.private:
                raise
            self.port.stay(o, error)
            reduced = self.port.absent(o)
        return self._checked(reduced)

    def _checked(self, reduced: Any) -> Any:
        if isinstance(reduced, tuple):
            self.temporary(reduced, reduced[1])
            self.temporary(*(arg for arg in reduced[1] if isinstance(arg, str | bytes)))
            if len(reduced) > 2:
                state = reduced[2]
                self.temporary(state)
                if isinstance(state, tuple | list):
                    self.temporary(*(part for part in state if type(part) is dict))
        return reduced

    def plain(self, o: Any) -> Any:
        """What pickle itself would do. Raises what it would raise."""
        if o is sys.stdout or o is sys.stderr:
            return getattr, (sys, "stdout" if o is sys.stdout else "stderr")
        reduced = super().reducer_override(o)
        if reduced is NotImplemented and not isinstance(o, type | types.FunctionType):
            reducer = self.dispatch_table.get(type(o))
            reduced = reducer(o) if reducer else o.__reduce_ex__(5)
        if isinstance(reduced, str) and not importable(o, reduced):
            raise pickle.PicklingError(f"it is not what {reduced} is in its module")
        return reduced

    native = plain

    def native_of(self, reduced: Any) -> Any:
        return reduced

    def function(self, o: types.FunctionType) -> Any:
        """A notebook function. Its cells are objects, made empty and filled once the function is there."""
        make, args, (attributes, facts), *_ = self.plain(o)
        cells = o.__closure__ or ()
        filled = [(cell, cell.cell_contents) for cell in cells if not is_empty(cell)]
        facts["__closure__"] = None
        self.temporary(attributes, facts, facts["__globals__"], facts["_cloudpickle_submodules"], filled, *filled)
        code, base, name, defaults, _ = args
        if base is not self.port.namespace:
            self.temporary(base)
        state = (attributes, facts), filled, self.port
        self.temporary(state[0])
        return make, (code, base, name, defaults, o.__closure__), state, None, None, set_function

    def notebook_class(self, o: type) -> Any:
        """A class made in the notebook. cloudpickle forgets slots, and names classes at random."""
        self.port.name_class(o)
        make, args, state, *rest = self.plain(o)
        if make is internals._make_skeleton_class and "__slots__" in vars(o) and "__orig_bases__" not in vars(o):
            args[3]["__slots__"] = vars(o)["__slots__"]
        self.temporary(args[3], *state)
        return make, args, state, *rest


class StandIn:
    """Written for a container that stays: plain containers are not reduced, so that it takes something else in their place."""

    def __init__(self, o: Any) -> None:
        self.o = o


class StandInKind(Fixed):
    def reduce(self, o: StandIn, pickler: Pickler) -> Any:
        return pickler.port.absent(o.o)


CHOICES[StandIn] = StandInKind()


class PrivatePickler(Pickler):
    """For what is within an opaque object: its real parts, and what each side has of its own, are holes."""

    private = True

    def __init__(self, port: Port, owner: Any, real: Container[int]) -> None:
        super().__init__(port)
        self.real = real
        self.parts: dict[int, tuple[int, Any]] = {}
        self.own = {id(port): "port", id(port.namespace): "namespace", id(owner): "self"}

    def persistent_id(self, o: Any) -> Any:
        key = id(o)
        if key in self.own:
            return self.own[key]
        if key in self.real:
            return self.parts.setdefault(key, (len(self.parts), o))[0]
        return None

    def frozen(self, content: Any) -> tuple[bytes, tuple[Any, ...], tuple[Any, ...]]:
        self.dump(content)
        buffers = tuple(pickle.PickleBuffer(buffer) for buffer in self.buffers)
        return self.file.getvalue(), tuple(part for _, part in self.parts.values()), buffers


class GroupPickler(PrivatePickler):
    """For values that one rank has by itself. real: ids of the known objects that they may refer to."""

    private = False

    def __init__(self, port: Port, real: Container[int]) -> None:
        super().__init__(port, EMPTY, real)


class ContentPickler(GroupPickler):
    """For comparing values of ranks: equal for equal content, whichever strings are one object and however sets are ordered."""

    compares = True

    def persistent_id(self, o: Any) -> Any:
        if type(o) is str:
            return o.encode("utf-8", "surrogatepass")
        if type(o) in (set, frozenset) and all(type(member) in (str, int, bytes) for member in o):
            return "set", sorted(map(repr, o))
        return super().persistent_id(o)


def in_band(large: list[memoryview], lendable: list[int], new_memory: set[int]) -> Callable[[pickle.PickleBuffer], bool]:
    """Small buffers go into the pickle, the others to a list. (A method would tie the pickler into a cycle.)"""

    def decide(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= IN_PICKLE:
            if id(buffer) in new_memory:
                lendable.append(len(large))
            large.append(raw)
        return raw.nbytes < IN_PICKLE

    return decide


def set_function(function: types.FunctionType, state: Any) -> None:
    (attributes, facts), filled, port = state
    if function.__globals__ is port.namespace:
        port.adopt(facts["__globals__"])
        facts["__globals__"] = {}
    internals._function_setstate(function, (attributes, facts))
    for cell, value in filled:
        cell.cell_contents = value


def is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is EMPTY
    except ValueError:
        return True


def importable(o: Any, name: str) -> bool:
    """Whether a global's name, as its reduction gives it, leads to that object."""
    found: Any = sys.modules.get(pickle.whichmodule(o, name))  # type: ignore[attr-defined]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is o
