"""A whole tensor of which each rank holds a shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ranks import ranks


class Shards:
    """The memory of a sharded tensor, shared by all its views.

    part: this rank's shard along `dim`, contiguous; None where every rank holds the whole.
    whole: the whole value, if it is at hand; kept: whether it stays at hand once it was gathered (activations, not weights).
    """

    __slots__ = ("dim", "gathered", "kept", "part", "shape", "spare", "whole")

    def __init__(
        self, part: Tensor | None, dim: int, shape: torch.Size, *, kept: bool = False, whole: Tensor | None = None
    ) -> None:
        self.part, self.dim, self.shape, self.kept, self.whole = part, dim % max(1, len(shape)), shape, kept, whole
        self.spare: torch.UntypedStorage | None = None  # the memory of the notebook's tensor, to come back to
        self.gathered: Callable[[], None] | None = None  # told when the whole was needed

    @property
    def data(self) -> Tensor:
        """What is here: gives dtype and device."""
        data = self.whole if self.part is None else self.part
        assert data is not None
        return data

    def value(self) -> Tensor:
        """The whole value. What is written to it counts only with `wrote_whole`."""
        if self.whole is not None:
            return self.whole
        assert self.part is not None
        if self.gathered:
            self.gathered()
        whole = ranks().gather(self.part, self.dim, self.shape[self.dim])
        if self.kept:
            self.whole = whole
        return whole

    def unnoticed(self) -> Tensor:
        """The whole value, and nothing else comes of its being asked for."""
        return ranks().gather(self.data, self.dim, self.shape[self.dim]) if self.whole is None else self.whole

    def wrote_whole(self, whole: Tensor) -> None:
        """`whole` was changed: so are the shards."""
        if self.part is not None:
            self.part.copy_(ranks().cut(whole, self.dim))
            self.whole = self.whole if self.whole is whole else None

    def wrote_part(self) -> None:
        """This rank's shard was changed."""
        self.whole = None

    def turn(self, dim: int) -> None:
        """Split along another dimension."""
        if self.part is None or self.dim == dim:
            return
        with torch.inference_mode(False), torch.no_grad():
            whole = self.value()
            self.part, self.dim = ranks().cut(whole, dim).clone(memory_format=torch.contiguous_format), dim


@dataclass(frozen=True)
class Step:
    """One step from a tensor to a view of it. index: among several results."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None = None

    def __call__(self, value: Tensor) -> Tensor:
        result = self.function(value, *self.args, **self.kwargs)
        view: Tensor = result if self.index is None else result[self.index]
        return view


class Sharded(Tensor):
    """Stands for the whole tensor. Views are remembered as the steps that lead to them.

    quiet: autograd takes no notice of what is written to it, as with `.data`.
    """

    _shards: Shards
    _path: tuple[Step, ...]
    _quiet: bool

    @staticmethod
    def __new__(cls, shards: Shards, path: tuple[Step, ...] = (), like: Tensor | None = None, quiet: bool = False) -> Sharded:
        """like: a tensor of the view's shape, strides and dtype."""
        data, shape = (shards.data, shards.shape) if like is None else (like, like.shape)
        stride = None if like is None else like.stride()
        made: Sharded = Tensor._make_wrapper_subclass(cls, shape, strides=stride, dtype=data.dtype, device=shards.data.device)
        made._shards, made._path, made._quiet = shards, path, quiet
        return made

    def touched(self) -> None:
        """Its memory was changed: autograd must not use what it saved of it."""
        data = self._shards.data
        if not self._quiet and not data.is_inference():
            torch.autograd.graph.increment_version(data)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .above import ABOVE

        special = ABOVE.get(getattr(func, "__wrapped__", func))  # in a mesh, mode `data` wraps what reads values
        with torch._C.DisableTorchFunctionSubclass():
            return (special or func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from .rules import run

        return run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return as_plain(self).__reduce_ex__(protocol)

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        with torch._C.DisableTorchFunctionSubclass():
            return repr(as_plain(self)) if not kwargs else as_plain(self).__repr__(**kwargs)

    def __copy__(self) -> Sharded:
        with torch._C.DisableTorchFunctionSubclass():
            return as_parameter(self, alias(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        from .above import deepcopy

        with torch._C.DisableTorchFunctionSubclass():
            return deepcopy(self, memo)


def alias(value: Sharded, quiet: bool = False) -> Sharded:
    """The same memory, in the same place."""
    return Sharded(value._shards, value._path, value if value._path else None, quiet or value._quiet)


def layout(value: object) -> Shards | None:
    """The shards of a tensor that is split and no view; else None."""
    if isinstance(value, Sharded) and not value._path and value._shards.part is not None:
        return value._shards
    return None


def whole_of(value: Tensor) -> Tensor:
    """The whole value, outside of any graph."""
    if not isinstance(value, Sharded):
        return value
    whole = value._shards.value()
    for step in value._path:
        whole = step(whole)
    return whole


def shard(whole: Tensor, dim: int) -> Sharded:
    """Keep this rank's part of it."""
    part = ranks().cut(whole.detach(), dim).clone(memory_format=torch.contiguous_format)
    return Sharded(Shards(part, dim, whole.shape))


def as_parameter(like: Tensor, made: Any) -> Any:
    """`made`, as a parameter if `like` is one."""
    flag = like.requires_grad and like.is_leaf
    return torch.nn.Parameter(made, flag) if isinstance(like, torch.nn.Parameter) else made.requires_grad_(flag)


def as_plain(value: Sharded) -> Tensor:
    """A copy that is whole, for what looks into a tensor's memory."""
    plain: Tensor = as_parameter(value, whole_of(value.detach()).clone())
    if value.is_leaf or not value.requires_grad:
        return plain
    from .functions import as_torch

    return as_torch(_Shown, value).apply(value, plain)


class _Shown(torch.autograd.Function):
    """For texts: a tensor that says that it has a graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, plain: Tensor) -> Tensor:
        return plain.detach()
