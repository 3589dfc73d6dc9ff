"""Kinds of torch's objects. Storages are known objects and tensors are views of them, so that shared memory stays shared."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.storage import TypedStorage, UntypedStorage

from nbpar.values import choice, kinds, memory
from nbpar.values.opaque import OPAQUE
from nbpar.values.pool import MAPPED, chunk

if TYPE_CHECKING:
    from nbpar.values.pickling import Pickler
    from nbpar.values.table import Port, Table

Marks = tuple[bool | None, bool, bool, bool]  # requires_grad of a leaf; whether it had a graph; conjugated; negated
Geometry = tuple[torch.dtype, int, tuple[int, ...], tuple[int, ...]]


def on_host(storage: UntypedStorage) -> UntypedStorage:
    return storage if storage.device.type == "cpu" else storage.cpu()


class StorageKind(kinds.Kind):
    """The patch is (size, fingerprint, bytes). Memory that is written is torch's own, so that it can be resized."""

    order = 0
    shares = stays = True

    def snap(self, o: UntypedStorage, port: Any = None) -> Any:
        known = port.fingerprints.get(id(o))
        return o.nbytes(), print_of(on_host(o)) if known is None else known

    def diff(self, o: UntypedStorage, old: Any, port: Any = None) -> Any:
        host = on_host(o)
        now = o.nbytes(), print_of(host)
        if now == old:
            return None
        if old is not None and old[0] != now[0] and old[0] >= MAPPED:
            return kinds.REPLACE  # memory that is mapped on the other side cannot change its size
        return *now, buffer(host)

    def patch(self, o: UntypedStorage, p: Any) -> None:
        size, _, data = p
        if o.nbytes() != size:
            o.resize_(size)
        fill(o, data)

    def snap_patched(self, o: UntypedStorage, p: Any, port: Any = None) -> Any:
        return p[:2]

    def reduce(self, o: UntypedStorage, pickler: Pickler) -> Any:
        whole = None if o.resizable() else memory_around(pickler.port, o)
        if whole is not None:
            return storage_of, (whole, o.data_ptr() - begin_of(whole), o.nbytes())
        pickler.port.memories.append(o)
        host = on_host(o)
        now = print_of(host)
        pickler.port.fingerprints[id(o)] = now
        data = buffer(host)
        if id(o) not in pickler.port.to_be_written:
            data = pickler.new_memory(data)
        return new_storage, (pickler.port, o.nbytes(), place(o.device), now, data)

    def after_patches(self, table: Table, numbers: list[int]) -> None:
        """What autograd has saved of a tensor whose bytes were replaced must not be used."""
        changed = {id(table.objs[number]) for number in numbers if table.kinds[number] is STORAGE}
        pairs = zip(table.objs, table.kinds, strict=True)
        tensors = [o for o, kind in pairs if kind is TENSOR and id(o.untyped_storage()) in changed and not o.is_inference()]
        if tensors:
            torch.autograd.graph.increment_version(tensors)


class _Others:
    by_id: Mapping[int, torch.Tensor] = {}


@contextmanager
def written_as(others: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """While it lasts, these tensors, by id, are written as others are, but with their own gradients."""
    _Others.by_id = others
    try:
        yield
    finally:
        _Others.by_id = {}


def seen(o: torch.Tensor) -> torch.Tensor:
    return _Others.by_id.get(id(o), o)


def gradient_of(o: torch.Tensor) -> torch.Tensor | None:
    """Its `.grad`, which torch gives with a warning where a tensor has none: of a leaf, or where `retain_grad()` asked for it."""
    return o.grad if o.is_leaf or o.retains_grad else None


class TensorKind(kinds.Kind):
    order = 1
    stays = True

    def snap(self, o: torch.Tensor, port: Any = None) -> Any:
        other = seen(o)
        return (
            other.untyped_storage(),
            (other.dtype, other.storage_offset(), tuple(other.shape), other.stride()),
            other.requires_grad if other.is_leaf else None,
            gradient_of(o),
            dict(other.__dict__),
            other.grad_fn,
        )

    def diff(self, o: torch.Tensor, old: Any, port: Any = None) -> Any:
        new = self.snap(o)
        if old is None or new[0] is not old[0] or new[1:3] != old[1:3] or new[3] is not old[3] or new[5] is not old[5]:
            return new[:5]
        return None if kinds.same_dict(new[4], old[4]) else new[:5]

    def patch(self, o: torch.Tensor, p: Any) -> None:
        storage, geometry, requires_grad, grad, attributes = p
        with torch.no_grad():
            if o.is_leaf:
                o.grad = None  # else a gradient of the old shape stands in the way
            if o.untyped_storage() is not storage or geometry != self.snap(o)[1]:
                o.data = on_storage(storage, geometry)
            if o.is_leaf:
                if requires_grad is not None:
                    o.requires_grad_(requires_grad)
                o.grad = grad
        o.__dict__.clear()
        o.__dict__.update(attributes)

    def children(self, o: torch.Tensor) -> Any:
        other = seen(o)
        yield other.untyped_storage()
        if (grad := gradient_of(o)) is not None:
            yield grad
        yield type(other)
        yield from other.__dict__.values()

    def reduce(self, o: torch.Tensor, pickler: Pickler) -> Any:
        storage, geometry, requires_grad, grad, attributes, graph = self.snap(o)
        if pickler.compares and not o._is_view() and o.numel() * o.element_size() < storage.nbytes():
            storage = o.detach().clone().untyped_storage()  # the rest may be anything: mse_loss leaves scraps behind its one number
            pickler.temporary(storage)
        pickler.port.writes_tensor(o, graph is not None)
        if requires_grad or graph is not None:
            pickler.port.to_be_written.add(id(storage))
        other = seen(o)
        marks = requires_grad, graph is not None, other.is_conj(), other.is_neg()
        args = pickler.port, type(other), storage, geometry, marks
        pickler.temporary(geometry, attributes)
        return new_tensor, args, (grad, attributes), None, None, set_tensor


class ModuleKind(kinds.AttributesKind):
    """By attributes: `__setstate__` of modules merges, so that what was deleted would come back."""

    stays = True

    def reduce(self, o: Any, pickler: Pickler) -> Any:
        return new_instance, (type(o),), dict(o.__dict__), None, None, set_attributes


def memory_around(port: Port, o: UntypedStorage) -> Any:
    """A known array or storage on whose memory torch made this storage; not itself, which `numpy()` has made unresizable."""
    begin, end = o.data_ptr(), o.data_ptr() + o.nbytes()
    for whole in (*port.known_memories("numpy"), *port.known_memories("torch")):
        size = whole.nbytes if isinstance(whole.nbytes, int) else whole.nbytes()
        if whole is not o and begin_of(whole) <= begin < end <= begin_of(whole) + size:
            return whole
    return None


def begin_of(whole: Any) -> int:
    return whole.data_ptr() if isinstance(whole, UntypedStorage) else whole.__array_interface__["data"][0]


def storage_of(whole: Any, offset: int, size: int) -> UntypedStorage:
    """A storage on a part of an array's or another storage's memory."""
    from nbpar.values.arrays import view_of

    return torch.from_numpy(view_of(whole, offset, ((size,), (1,), "uint8", True))).untyped_storage()


def print_of(storage: UntypedStorage) -> bytes:
    return memory.fingerprint(storage.data_ptr(), storage.nbytes())


def buffer(storage: UntypedStorage) -> pickle.PickleBuffer:
    return pickle.PickleBuffer(memory.view(storage.data_ptr(), storage.nbytes()))


def place(device: torch.device) -> str:
    """A device in words that hold on the other side: this process's own GPU is there its own GPU."""
    if device.type == "cuda" and device.index == torch.cuda.current_device():
        return "cuda"
    return str(device)


def new_storage(port: Port, size: int, device: str, now: bytes, data: Any) -> UntypedStorage:
    if device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"
    mapped = chunk(data).mapped() if device == "cpu" else None
    if mapped is None:
        storage = UntypedStorage(size, device=device)
        fill(storage, data)
    else:
        storage = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
        memory.remember(mapped, storage.data_ptr(), size, now)
    port.fingerprints[id(storage)] = now
    return storage


def fill(storage: UntypedStorage, data: Any) -> None:
    if storage.device.type == "cpu":
        chunk(data).into(storage.data_ptr())
    else:
        host = UntypedStorage(storage.nbytes())
        chunk(data).into(host.data_ptr())
        storage.copy_(host)


def on_storage(storage: UntypedStorage, geometry: Geometry) -> torch.Tensor:
    dtype, offset, shape, stride = geometry
    return torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, stride)


def new_tensor(port: Port, cls: type, storage: UntypedStorage, geometry: Geometry, marks: Marks) -> torch.Tensor:
    tensor = on_storage(storage, geometry)
    requires_grad, graph, conjugated, negated = marks
    if conjugated or negated:
        torch._C._set_conj(tensor, conjugated)
        torch._C._set_neg(tensor, negated)
    if cls is torch.nn.Parameter:
        tensor = torch.nn.Parameter(tensor, bool(requires_grad))
    elif cls is not torch.Tensor:
        tensor = tensor.as_subclass(cls)
    if requires_grad:
        tensor.requires_grad_(True)
    if graph:
        port.came_detached(tensor)
    return tensor


def set_tensor(tensor: torch.Tensor, state: Any) -> None:
    grad, attributes = state
    if grad is not None:
        tensor.grad = grad
    tensor.__dict__.update(attributes)


def new_instance(cls: Any) -> Any:
    return cls.__new__(cls)


def set_attributes(o: Any, attributes: dict[str, Any]) -> None:
    o.__dict__.update(attributes)
    if isinstance(o, torch.optim.Optimizer) and hasattr(o, "_optimizer_step_pre_hooks"):  # one that wraps another has none
        o._patch_step_function()


def new_generator(device: str, state: bytes) -> torch.Generator:
    generator = torch.Generator(device)
    set_state(generator, state)
    return generator


def get_state(generator: torch.Generator) -> bytes:
    return generator.get_state().numpy().tobytes()


def set_state(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


class GeneratorKind(kinds.StateKind):
    def reduce(self, o: torch.Generator, pickler: Pickler) -> Any:
        return new_generator, (str(o.device), self.get(o))


class TypedStorageKind(kinds.Fixed):
    def reduce(self, o: TypedStorage, pickler: Pickler) -> Any:
        return new_typed, (o._untyped_storage, o.dtype)


def new_typed(storage: UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def tensor_kind(o: torch.Tensor) -> kinds.Kind:
    o = seen(o)
    plain = type(o) in (torch.Tensor, torch.nn.Parameter) or type(o).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    lazy = isinstance(o, torch.nn.parameter.UninitializedParameter | torch.nn.parameter.UninitializedBuffer)
    strided = o.layout == torch.strided and not o.is_quantized and not o.is_nested and o.device.type in ("cpu", "cuda")
    return TENSOR if plain and strided and not lazy else OPAQUE


STORAGE, TENSOR, MODULE = StorageKind(), TensorKind(), ModuleKind()
choice.LIBRARIES += [
    (UntypedStorage, STORAGE),
    (TypedStorage, TypedStorageKind(lambda o: (o._untyped_storage,))),
    (torch.Tensor, choice.Chooser(tensor_kind)),
    (torch.jit.ScriptModule, OPAQUE),
    (torch.nn.Module, MODULE),
    (torch.optim.Optimizer, MODULE),
    (torch.Generator, GeneratorKind(get_state, set_state)),
    (torch.Size, None),
    (torch.dtype, kinds.FIXED),
    (torch.device, kinds.FIXED),
    (torch.layout, kinds.FIXED),
]
