"""Which kind an object is of; None for small constants, which are simply written out each time."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import random
import re
import sys
import threading
import types
import typing
import uuid
import weakref
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from cloudpickle import cloudpickle

from nbpar.values import definitions, kinds, local_kinds
from nbpar.values.kinds import FIXED, Kind
from nbpar.values.opaque import OPAQUE
from nbpar.values.refs import REF, KernelRef, RankRef

SHORT = 128  # characters or bytes; longer constants are sent once

CONSTANTS = (int, float, complex, bool, type(None), type(...), type(NotImplemented), range, slice, types.CodeType, PickleBuffer)
IMMUTABLE = (
    str,
    bytes,
    int,
    float,
    complex,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.GenericAlias,
    types.UnionType,
    typing.TypeVar,
    re.Pattern,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    pathlib.PurePath,
)
ITEMS: tuple[tuple[type, Kind], ...] = (
    (collections.OrderedDict, kinds.ORDERED_DICT),
    (dict, kinds.DICT),
    (list, kinds.LIST),
    (collections.deque, kinds.DEQUE),
    (set, kinds.SUBSET),
)


class Chooser:
    """For types whose objects differ in kind."""

    def __init__(self, choose: Callable[[Any], Kind | None]) -> None:
        self.choose = choose


Choice = Kind | Chooser | None


def kind_of(o: Any) -> Kind | None:
    cls = type(o)
    try:
        choice = CHOICES[cls]
    except KeyError:
        choice = CHOICES[cls] = choose(cls)
    return choice.choose(o) if choice.__class__ is Chooser else choice  # type: ignore[return-value]


def choose(cls: type) -> Choice:
    for base, choice in LIBRARIES:
        if issubclass(cls, base):
            return choice
    if issubclass(cls, type):
        return Chooser(class_kind)
    if issubclass(cls, (*IMMUTABLE, enum.Enum)):
        return OF_CLASS
    if issubclass(cls, tuple | frozenset):
        return Chooser(members_kind)
    if issubclass(cls, random.Random):
        return kinds.StateKind(cls.getstate, cls.setstate)
    if default_reduce(cls):
        for base, kind in ITEMS:
            if issubclass(cls, base):
                return kinds.WithAttributes(kind)
        return kinds.ATTRIBUTES
    return OPAQUE


def default_reduce(cls: Any) -> bool:
    """Whether pickle takes an object of this class apart into what it really holds, and nothing else."""
    reduce = cls.__reduce__ in (object.__reduce__, getattr(collections.OrderedDict, "__reduce__", None))
    if issubclass(cls, collections.deque | set):
        return cls.__reduce__ in (collections.deque.__reduce__, set.__reduce__)
    getstate = getattr(cls, "__getstate__", None) in (None, getattr(object, "__getstate__", None))
    return reduce and cls.__reduce_ex__ is object.__reduce_ex__ and getstate and cls not in cloudpickle.Pickler.dispatch_table


def class_kind(o: Any) -> Kind:
    if by_reference(o) or o.__module__ == "builtins":
        return FIXED
    return definitions.ENUM if issubclass(o, enum.Enum) else definitions.CLASS


def function_kind(o: Any) -> Kind:
    return FIXED if by_reference(o) else definitions.FUNCTION


def by_reference(o: Any) -> bool:
    try:
        return BY_REFERENCE[o]
    except KeyError:
        BY_REFERENCE[o] = cloudpickle._should_pickle_by_reference(o)
        return BY_REFERENCE[o]
    except TypeError:  # a metaclass without hash
        return cloudpickle._should_pickle_by_reference(o)


def members_kind(o: Any) -> Kind | None:
    return kinds.MEMBERS if len(o) > SHORT or any(kind_of(member) is not None for member in o) else None


def long_kind(o: Any) -> Kind | None:
    return FIXED if len(o) > SHORT else None


OF_CLASS = kinds.Fixed(lambda o: (type(o),))
BY_REFERENCE: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
THREAD = local_kinds.StaysKind("a thread belongs to its process")
LIBRARIES: list[tuple[type, Choice]] = [(threading.Thread, THREAD)]  # with subclasses; libraries add theirs when they are there
CHOICES: dict[type, Choice] = {
    **dict.fromkeys(CONSTANTS, None),
    str: Chooser(long_kind),
    bytes: Chooser(long_kind),
    tuple: Chooser(members_kind),
    frozenset: Chooser(members_kind),
    list: kinds.LIST,
    dict: kinds.DICT,
    collections.OrderedDict: kinds.ORDERED_DICT,
    collections.defaultdict: kinds.DICT,
    collections.Counter: kinds.COUNTER,
    set: kinds.SET,
    collections.deque: kinds.DEQUE,
    bytearray: kinds.BYTES,
    array.array: kinds.BYTES,
    types.CellType: definitions.CELL,
    types.MethodType: definitions.METHOD,
    types.FunctionType: Chooser(function_kind),
    RankRef: REF,
    KernelRef: REF,
    weakref.ref: local_kinds.WEAKREF,
    **dict.fromkeys(
        (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet),
        local_kinds.StaysKind("it holds weak references"),
    ),
    memoryview: local_kinds.StaysKind("it is a view of another object's memory"),
    property: definitions.PROPERTY,
    staticmethod: definitions.WRAPPED,
    classmethod: definitions.WRAPPED,
    random.Random: kinds.StateKind(random.Random.getstate, random.Random.setstate),
    **{type(make()): local_kinds.LOCK for make in local_kinds.LOCKS.values()},
}


def learn_libraries() -> None:
    """Kinds of numpy's and torch's objects, once somebody has imported them."""
    if len(_learnt) == 2:
        return
    for library, module in (("torch", "tensors"), ("numpy", "arrays")):
        if library in sys.modules and library not in _learnt and hasattr(sys.modules[library], "__version__"):
            _learnt.add(library)
            __import__(f"nbpar.values.{module}")


_learnt: set[str] = set()
