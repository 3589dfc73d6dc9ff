"""Kinds of numpy's objects. An array that owns its memory is sent as those bytes; a view, as its place in its owner."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from nbpar.values import choice, kinds, memory
from nbpar.values.opaque import OPAQUE
from nbpar.values.pool import chunk

if TYPE_CHECKING:
    from nbpar.values.pickling import Pickler
    from nbpar.values.table import Port

Array = np.ndarray[Any, Any]
Layout = tuple[tuple[int, ...], tuple[int, ...], Any, bool]  # shape, strides in bytes, dtype, writeable


def owner(a: Array) -> Any:
    """What a view is a view of: an array, or a tensor. An array that lies on anything else counts as an owner."""
    o: Any = a
    while isinstance(o.base, np.ndarray):
        o = o.base
    return o.base if is_tensor(o.base) else o


def is_tensor(o: Any) -> bool:
    return "torch" in sys.modules and isinstance(o, sys.modules["torch"].Tensor)


def ordered(a: Array) -> Array:
    """The array with its axes from the largest stride to the smallest: C-contiguous where it owns its memory."""
    return a.transpose(in_memory(a))


def in_memory(a: Array) -> tuple[int, ...]:
    return tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))


def layout(a: Array) -> Layout:
    return a.shape, a.strides, a.dtype, a.flags.writeable


def content(a: Array) -> Array:
    """An array's elements, contiguous: in the order of its memory if it is the owner, else in C order (perhaps a copy)."""
    return ordered(a) if a.base is None else np.ascontiguousarray(a)


def address(a: Array) -> int:
    return int(a.__array_interface__["data"][0])


def only_reshaped(o: Array, old: Any) -> bool:
    """Whether an array's new shape can be set on the other side's array."""
    shape, strides, dtype = old[:3]
    same_elements = o.dtype == dtype and o.size == np.prod(shape)
    return bool(same_elements and o.flags.c_contiguous and contiguous(shape, strides, dtype))


def contiguous(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> bool:
    steps = np.cumprod((dtype.itemsize, *reversed(shape[1:]))) if shape else ()
    return tuple(steps) == strides[::-1]


class ArrayKind(kinds.Kind):
    """The patch is (shape, fingerprint, bytes), the latter None from a view: what owns its memory here may be a view there."""

    order = 0
    shares = True

    def snap(self, o: Array, port: Any = None) -> Any:
        known = port.fingerprints.get(id(o))
        if known is None:
            plain = content(o)
            known = memory.fingerprint(address(plain), plain.nbytes)
        return o.shape, o.strides, o.dtype, known

    def diff(self, o: Array, old: Any, port: Any = None) -> Any:
        plain = content(o)
        now = memory.fingerprint(address(plain), plain.nbytes)
        if old is None or (o.shape, o.strides, o.dtype) == old[:3]:
            return None if old is not None and now == old[3] else (o.shape, now, buffer(plain))
        return (o.shape, now, buffer(plain)) if only_reshaped(o, old) else kinds.REPLACE

    def patch(self, o: Array, p: Any) -> None:
        set_array(o, p)

    def snap_patched(self, o: Array, p: Any, port: Any = None) -> Any:
        return self.snap(o, port) if p[1] is None else (o.shape, o.strides, o.dtype, p[1])

    def reduce(self, o: Array, pickler: Pickler) -> Any:
        storage = storage_around(pickler.port, o)
        if storage is not None:
            return view_of, (storage, address(o) - storage.data_ptr(), layout(o))
        pickler.port.memories.append(o)
        plain = content(o)
        now = memory.fingerprint(address(plain), plain.nbytes)
        pickler.port.fingerprints[id(o)] = now
        axes = in_memory(o) if o.base is None else tuple(range(o.ndim))
        return new_array, (pickler.port, layout(o), axes, now, pickler.new_memory(buffer(plain)))


class ViewKind(kinds.Kind):
    """A view of known memory; what it shows changes there."""

    order = 1

    def snap(self, o: Array, port: Any = None) -> Any:
        return o.shape, o.strides, o.dtype

    def diff(self, o: Array, old: Any, port: Any = None) -> Any:
        if old is None or (o.shape, o.strides, o.dtype) == old:
            return None
        return (o.shape, None, None) if only_reshaped(o, old) else kinds.REPLACE

    def patch(self, o: Array, p: Any) -> None:
        set_array(o, p)

    def children(self, o: Array) -> Any:
        return (base(o),)

    def reduce(self, o: Array, pickler: Pickler) -> Any:
        whole = base(o)
        begin = address(whole) if isinstance(whole, np.ndarray) else whole.data_ptr()
        return view_of, (whole, address(o) - begin, layout(o))


class ObjectsKind(kinds.Kind):
    """An array of objects: like a list."""

    def snap(self, o: Array, port: Any = None) -> Any:
        return o.shape, o.ravel().tolist()

    def diff(self, o: Array, old: Any, port: Any = None) -> Any:
        if old is not None and o.shape != old[0]:
            return kinds.REPLACE
        elements = o.ravel().tolist()
        return None if old is not None and kinds.same(elements, old[1]) else (elements,)

    def patch(self, o: Array, p: Any) -> None:
        set_elements(o, p[0])

    def children(self, o: Array) -> Any:
        return o.ravel().tolist()

    def reduce(self, o: Array, pickler: Pickler) -> Any:
        return np.empty, (o.shape, "O"), o.ravel().tolist(), None, None, set_elements


def base(a: Array) -> Any:
    """The known object whose memory a view shows: an array, or the storage of a tensor."""
    whole = owner(a)
    return whole if isinstance(whole, np.ndarray) else whole.untyped_storage()


def storage_around(port: Port, o: Array) -> Any:
    """A known storage that torch made on numpy's memory, if the array has that memory."""
    for whole in port.known_memories("torch"):  # type: Any
        if whole.resizable():
            continue
        if whole.data_ptr() <= address(o) and address(o) + o.nbytes <= whole.data_ptr() + whole.nbytes() and o.nbytes:
            return whole
    return None


def buffer(plain: Array) -> pickle.PickleBuffer:
    return pickle.PickleBuffer(memory.view(address(plain), plain.nbytes))


def new_array(port: Port, laid: Layout, axes: tuple[int, ...], now: bytes, data: Any) -> Array:
    """An array that owns its memory, with its axes in that order there."""
    shape, _, dtype, writeable = laid
    straight = axes == tuple(range(len(shape)))
    mapped = chunk(data).mapped() if straight else None
    if mapped is not None:
        plain = np.ndarray(shape, dtype, buffer=mapped)
        memory.remember(mapped, address(plain), plain.nbytes, now)
    else:
        plain = np.empty([shape[axis] for axis in axes], dtype)
        chunk(data).into(address(plain))
    if not straight:
        turned = plain.transpose(np.argsort(axes))
        plain = np.empty_like(turned)  # keeps the order of the axes in memory
        plain[...] = turned
    plain.flags.writeable = writeable
    port.fingerprints[id(plain)] = now
    return plain


def view_of(whole: Any, offset: int, laid: Layout) -> Array:
    """A view of an array or a storage. offset: in bytes."""
    if not isinstance(whole, np.ndarray):
        import torch

        whole = torch.empty(0, dtype=torch.uint8).set_(whole).numpy()
    shape, strides, dtype, writeable = laid
    view: Array = np.ndarray(shape, dtype, buffer=ordered(whole), offset=offset, strides=strides)
    view.flags.writeable = writeable and view.flags.writeable
    return view


def set_array(o: Array, p: Any) -> None:
    shape, _, data = p
    if o.shape != shape:
        o.shape = shape
    if data is None:
        return
    plain = ordered(o) if o.base is None else o
    if plain.flags.c_contiguous and plain.flags.writeable:
        chunk(data).into(address(plain))
    else:
        plain[...] = np.frombuffer(chunk(data).whole(), o.dtype).reshape(plain.shape)


def set_elements(a: Array, elements: list[Any]) -> None:
    for index, element in zip(np.ndindex(a.shape), elements, strict=True):
        a[index] = element


def array_kind(o: Array) -> kinds.Kind:
    if type(o) is not np.ndarray or (o.dtype.hasobject and o.dtype != object):
        return OPAQUE
    if o.dtype.hasobject:
        return OBJECTS
    if not o.size:
        return ARRAY
    whole = owner(o)
    if is_tensor(whole):
        return VIEW
    whole_memory = type(whole) is np.ndarray and not whole.dtype.hasobject and ordered(whole).flags.c_contiguous
    return VIEW if whole is not o and whole_memory else ARRAY


ARRAY, VIEW, OBJECTS = ArrayKind(), ViewKind(), ObjectsKind()
choice.LIBRARIES += [(np.ndarray, choice.Chooser(array_kind)), (np.dtype, kinds.FIXED), (np.generic, None), (np.ufunc, kinds.FIXED)]
