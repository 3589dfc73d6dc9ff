"""What Python asks of a sharded tensor above autograd: its memory, its data, copies, and layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import swap_tensors
from torch.utils._pytree import tree_map

from nbpar.errors import Unsupported
from nbpar.parallel.patch import patched

from .layers import IN_PARALLEL
from .sharded import Sharded, Shards, alias, as_parameter, as_plain, whole_of

OWN = ("_shards", "_path", "_quiet", "_is_param")  # attributes that are not the person's


def get_data(value: Sharded) -> Tensor:
    return alias(value, quiet=True)


def set_data(value: Tensor, data: Tensor) -> None:
    """`value.data = data`: from now on its memory is that of `data`."""
    if not isinstance(value, Sharded):
        raise Unsupported("`.data =` of a tensor that is whole on every rank with one that is split; use value.copy_(…)")
    if isinstance(data, Sharded):
        shards, path = data._shards, data._path
        like: Tensor | None = data if data._path else None
    else:
        shards, path, like = Shards(None, 0, data.shape, whole=data.data), (), data
    if (value.shape, value.dtype, value.stride()) == (data.shape, data.dtype, data.stride()):
        value._shards, value._path = shards, path
    else:
        become(value, as_parameter(value, Sharded(shards, path, like)))


def become(value: Tensor, made: Tensor) -> None:
    """`value` becomes `made` and keeps identity, hooks and the person's attributes. Raises RuntimeError if a graph holds it."""
    made.__dict__.update({name: thing for name, thing in value.__dict__.items() if name not in OWN})
    if value._backward_hooks is not None:
        made._backward_hooks = value._backward_hooks
    hooks = getattr(value, "_post_accumulate_grad_hooks", None)
    if hooks is not None:
        made._post_accumulate_grad_hooks = hooks
    swap_tensors(value, made)


def deepcopy(value: Sharded, memo: dict[int, Any]) -> Tensor:
    """Copies that shared memory share it again."""
    if id(value) in memo:
        return memo[id(value)]
    if not value.is_leaf:
        return copy.deepcopy(as_plain(value), memo)  # torch says why it cannot
    shards = value._shards
    if id(shards) not in memo:
        part, whole = (None if data is None else data.clone() for data in (shards.part, shards.whole))
        memo[id(shards)] = Shards(part, shards.dim, shards.shape, kept=shards.kept, whole=whole)
    like = value if value._path or shards.part is None else None
    made: Tensor = as_parameter(value, Sharded(memo[id(shards)], value._path, like))
    memo[id(value)] = made
    if value.grad is not None:
        made.grad = copy.deepcopy(value.grad, memo)
    made.__dict__.update({name: copy.deepcopy(thing, memo) for name, thing in value.__dict__.items() if name not in OWN})
    return made


def numpy(value: Sharded, *args: Any, **kwargs: Any) -> Any:
    array = as_plain(value).numpy(*args, **kwargs)
    array.flags.writeable = False  # it is a copy: what is written to it would not reach the tensor
    return array


def array(value: Sharded, *args: Any, **kwargs: Any) -> Any:
    made = as_plain(value).__array__(*args, **kwargs)
    made.flags.writeable = False
    return made


def to_list(value: Sharded) -> Any:
    return whole_of(value).tolist()


def formatted(value: Sharded, form: str) -> str:
    return as_plain(value).__format__(form)


def of_lists(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and torch.as_tensor, which look into the memory of tensors in a list."""

    def make(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return function(data, *args, **kwargs)
        except RuntimeError:
            whole = tree_map(lambda leaf: whole_of(leaf.detach()) if isinstance(leaf, Sharded) else leaf, data)
            return function(whole, *args, **kwargs)

    return make


@contextmanager
def lists_may_hold_sharded() -> Iterator[None]:
    with patched(torch, "tensor", of_lists), patched(torch, "as_tensor", of_lists):
        yield


def refuse(name: str) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise Unsupported(
            f"{name} of a tensor that is split over the ranks: its memory is in several processes; use .clone() or .tolist()"
        )

    return refused


_MEMORY = (
    "data_ptr",
    "untyped_storage",
    "storage",
    "_typed_storage",
    "set_",
    "resize_",
    "resize_as_",
    "share_memory_",
    "__dlpack__",
)

ABOVE: dict[Any, Callable[..., Any]] = {
    **IN_PARALLEL,
    Tensor.data.__get__: get_data,  # type: ignore[attr-defined]
    Tensor.data.__set__: set_data,  # type: ignore[attr-defined]
    Tensor.numpy: numpy,
    Tensor.__array__: array,
    Tensor.tolist: to_list,
    Tensor.__format__: formatted,
    **{getattr(Tensor, name): refuse(name) for name in _MEMORY},
}
