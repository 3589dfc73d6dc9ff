"""Where a tensor lives: its owner is an attribute of its storage, so that views, `.data`, `detach` and saved tensors keep it.

Three states, nothing else:

    owned        real on its owner, meta on every other rank
    replicated   no owner, real and equal on all ranks
    lost         no owner and meta: nobody knows the value, so it raises Unsupported
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from nbpar.errors import Unsupported

_OWNER = "_nbpar_owner"
_STAMP = "_nbpar_stamp"
_PINNED = "_nbpar_pinned"
_SPARE = "_nbpar_spare"
_LOOSE = "_nbpar_loose"
_COMING = "_nbpar_coming"
_SHARED = object()
_LAZY = (UninitializedParameter, UninitializedBuffer)  # isinstance is slow on these


def owner(tensor: Tensor) -> int | None:
    """The rank that holds this value; None where every rank holds it. Raises Unsupported where no rank does."""
    if type(tensor) in _LAZY or tensor.layout is not torch.strided:
        return None
    rank: int | None = getattr(tensor.untyped_storage(), _OWNER, None)
    if rank is None and tensor.is_meta:
        raise Unsupported(
            f"a meta tensor of shape {tuple(tensor.shape)} has no value on any rank; create it on a real device instead"
        )
    return rank


def is_split(thing: object) -> bool:
    """Whether this is a tensor whose value one rank alone holds, or no rank."""
    if not isinstance(thing, Tensor) or type(thing) in _LAZY:
        return False
    return thing.layout is torch.strided and (thing.is_meta or hasattr(thing.untyped_storage(), _OWNER))


def give(tensor: Tensor, rank: int | None) -> Tensor:
    """Say that this value is held by `rank`."""
    if rank is not None:
        setattr(tensor.untyped_storage(), _OWNER, rank)
    return tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Say that this value is held where another one is known to be."""
    return give(tensor, home(other))


def home(tensor: Tensor) -> int | None:
    """The rank that is known to hold this value. Inside a backward pass it is not known of those that are computed."""
    rank: int | None = getattr(tensor.untyped_storage(), _OWNER, None) if tensor.layout is torch.strided else None
    return rank


def release(tensor: Tensor) -> None:
    """Say that every rank holds this value."""
    storage = tensor.untyped_storage()
    for mark in (_OWNER, _PINNED, _LOOSE):
        if hasattr(storage, mark):
            delattr(storage, mark)


@contextmanager
def unmarked(values: Iterable[Tensor]) -> Iterator[None]:
    """While it lasts, these are like any other tensors: whoever pickles one does not ask its owner for it."""
    marks = [(storage, getattr(storage, _OWNER)) for value in values if hasattr(storage := value.untyped_storage(), _OWNER)]
    for storage in {id(storage): storage for storage, _ in marks}.values():
        delattr(storage, _OWNER)
    try:
        yield
    finally:
        for storage, rank in marks:
            setattr(storage, _OWNER, rank)


def spare(stand_in: Tensor, storage: torch.UntypedStorage) -> None:
    """Remember the memory that a value had here before it went to another rank: it comes back to it. Until then it is given up."""
    setattr(stand_in.untyped_storage(), _SPARE, storage)
    if storage.resizable() and torch._C._storage_Use_Count(storage._cdata) == 1:  # nothing but its Python object
        storage.resize_(0)


def spare_of(value: Tensor) -> torch.UntypedStorage | None:
    return getattr(value.untyped_storage(), _SPARE, None)


def fill(values: Sequence[Tensor], data: Tensor) -> torch.UntypedStorage:
    """The memory for what arrived: the one that these values had before, else the arrived bytes' own."""
    for value in values:
        storage = spare_of(value)
        if storage is not None and storage.nbytes() in (0, data.nbytes):
            if not storage.nbytes():
                storage.resize_(data.nbytes)
            torch.empty(0, dtype=torch.uint8).set_(storage).copy_(data)
            return storage
    return data.untyped_storage()


@contextmanager
def borrowed(spares: Iterable[torch.UntypedStorage | None]) -> Iterator[None]:
    """While it lasts, memory that values had before may be filled; what of it was given up is so again afterwards."""
    empty = [storage for storage in spares if storage is not None and not storage.nbytes()]
    try:
        yield
    finally:
        for storage in empty:
            storage.resize_(0)


def remote(like: Tensor, rank: int) -> Tensor:
    """A value of that shape, strides and dtype which another rank holds."""
    return give(empty(like.shape, like.stride(), like.dtype), rank)


def empty(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device | str = "meta") -> Tensor:
    """As torch.empty_like, which takes ten times as long on meta: dense, in the order of dimensions that the strides have."""
    plain = torch.empty(shape, dtype=dtype, device=device)
    if plain.stride() == tuple(stride) or 0 in stride:
        return plain
    return torch.empty_like(torch.empty_strided(shape, stride, dtype=dtype, device="meta"), device=device)


def wrote(tensor: Tensor) -> None:
    """Say that this value changed, so that copies of it on other ranks are stale."""
    if tensor.layout is torch.strided and getattr(storage := tensor.untyped_storage(), _STAMP, None) is not _SHARED:
        setattr(storage, _STAMP, object())


def shared(tensor: Tensor) -> None:
    """Say that others than torch have this memory, and may write to it unseen: a copy is stale at once."""
    if tensor.layout is torch.strided:
        setattr(tensor.untyped_storage(), _STAMP, _SHARED)


def stamp(tensor: Tensor) -> object:
    """The same object until the value changes. Told alike on all ranks, unlike `_version`."""
    storage = tensor.untyped_storage()
    mark = getattr(storage, _STAMP, None)
    if mark is None:
        mark = object()
        setattr(storage, _STAMP, mark)
    return object() if mark is _SHARED else mark


def expect(stand_in: Tensor, take: Callable[[], Tensor]) -> None:
    """Say how to get the value that this stands for while it is under way."""
    setattr(stand_in.untyped_storage(), _COMING, take)


def arrived(stand_in: Tensor) -> Tensor:
    """The value that this stood for; waits for it, once."""
    storage = stand_in.untyped_storage()
    take: Callable[[], Tensor] = getattr(storage, _COMING)
    delattr(storage, _COMING)
    return take()


def loosen(tensor: Tensor, yes: bool = True) -> None:
    """Say whether this value is where it is for the time being only."""
    setattr(tensor.untyped_storage(), _LOOSE, yes)


def loose(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and getattr(tensor.untyped_storage(), _LOOSE, False)


def pin(tensor: Tensor) -> None:
    """Say that operations come to this value, as it is a parameter or buffer: it does not travel if it can be avoided."""
    setattr(tensor.untyped_storage(), _PINNED, True)


def pinned(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and getattr(tensor.untyped_storage(), _PINNED, False)
