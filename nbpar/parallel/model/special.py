"""Torch functions that are not simply run at their operands' owner: reading into Python, attributes, gradients, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from nbpar.errors import Unsupported

from . import table
from .channel import channel, connected
from .home import give, owner, wrote
from .operands import on_all_ranks, own
from .remote import accumulating
from .transfer import bring, forget

Function = Callable[..., Any]


def read(function: Function, name: str, args: Any, kwargs: Any) -> Any:
    """Every rank gets the values and calls the function on them."""
    if name in ("as_tensor", "asarray") and isinstance(args[0], Tensor):
        return cast(Tensor.to, args, kwargs, args[0]) if len(args) > 1 or kwargs else args[0]
    result = function(*on_all_ranks(args), **on_all_ranks(kwargs))
    if name in ("numpy", "__array__"):
        result.flags.writeable = False  # it is a copy: what is written to it would not reach the tensor
    return result


def everywhere(function: Function, args: Any, kwargs: Any) -> Any:
    """Every rank does the same on all values, in the graph."""
    args, kwargs = tree_map(lambda leaf: bring(leaf, None) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return function(*args, **kwargs)


def show(function: Function, args: Any, kwargs: Any, value: Tensor) -> Any:
    """The owner writes the text."""
    link, rank = channel(), owner(value)
    if rank is None:
        return function(*on_all_ranks(args), **on_all_ranks(kwargs))
    if link.on_read:
        link.on_read()
    return link.tell(function(*args, **kwargs) if link.rank == rank else None, rank)


def like(function: Function, name: str, args: Any, kwargs: Any) -> Any:
    """A new tensor where the first operand is; random ones are drawn on every rank and kept there."""
    model, *_ = args
    rank = owner(model)
    args = [bring(arg, rank) if isinstance(arg, Tensor) and arg is not model else arg for arg in args]
    kwargs = {key: bring(value, rank) if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    if rank is None or channel().rank == rank:
        return give(function(*args, **kwargs), rank)
    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    if "rand" in name:
        here = torch.empty_like(model.detach(), device=channel().device)
        function(*[here if arg is model else arg for arg in args], **kwargs)
        kwargs.pop("generator", None)
    return give(function(*args, **kwargs), rank)


def cast(function: Function, args: Any, kwargs: Any, value: Tensor) -> Any:
    """Change dtype; the device is the owner's and stays."""
    rank = owner(value)
    name = getattr(function, "__name__", "")
    if name == "type" and len(args) + len(kwargs) == 1:
        return torch.empty(0, dtype=value.dtype, device=device_of(value)).type()
    rest = [*args[1:], *(kwargs.get(key) for key in ("dtype", "other"))]
    kept = {key: kwargs[key] for key in ("copy", "memory_format") if key in kwargs}
    if rank is None:
        model = next(part for part in rest if isinstance(part, Tensor))
        return value.to(device_of(model), model.dtype, **kept)
    if channel().rank == rank:
        return give(function(*args, **kwargs), rank)
    if name in ("cpu", "cuda", "pin_memory"):
        return value
    if name in ("to", "type", "type_as"):
        dtypes = [part.dtype if isinstance(part, Tensor) else part for part in rest]
        dtype = next((part for part in dtypes if isinstance(part, torch.dtype)), None)
        if any(isinstance(part, str) and "Tensor" in part for part in rest):
            raise Unsupported(".type('torch.…Tensor') on a value that one rank holds; use .to(dtype)")
        return give(value.to(dtype, **kept) if dtype or kept else value, rank)
    return give(function(*args, **kwargs), rank)


def shaped(function: Function, args: Any, kwargs: Any) -> Any:
    """Where the first operand is, so that what is written to a view is written to what it shows."""
    return give(function(*args, **kwargs), owner(args[0]))


def each(function: Function, args: Any, kwargs: Any, operands: list[Tensor]) -> Any:
    """The same for each of several: results are where their operands are."""
    owners = [owner(value) for value in operands]

    def at(rank: int | None) -> Any:
        there, named = tree_map(lambda leaf: bring(leaf, rank) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return function(*there, **named)

    made = {rank: at(rank) for rank in dict.fromkeys(owners)}
    if len(owners) == 1 and (rank := owners[0]) is not None:
        return own(made[rank], rank)
    return tuple(give(made[rank][position], rank) for position, rank in enumerate(owners))


def device_of(value: Tensor) -> torch.device:
    """Where the value is, as one process would say."""
    return channel().device if value.is_meta else value.device


def get_property(function: Function, value: Tensor) -> Any:
    name = function.__self__.__name__  # type: ignore[attr-defined]
    if name in table.PROPERTIES_TENSOR:
        result = function(value)
        return None if result is None else give(result, owner(value))
    if name == "device":
        return device_of(value)
    if name == "is_meta":
        return False
    if name == "is_cpu":
        return device_of(value).type == "cpu"
    if name == "is_cuda":
        return device_of(value).type == "cuda"
    if name in table.PROPERTIES_KNOWN:
        return function(value)
    raise Unsupported(f"Tensor.{name} of a value that one rank holds; use a copy that all ranks have: .tolist() or .numpy()")


def set_property(function: Function, value: Tensor, new: Any) -> Any:
    name = function.__self__.__name__  # type: ignore[attr-defined]
    if isinstance(new, Tensor):
        if name not in ("data", "grad"):
            raise Unsupported(f"setting Tensor.{name}")
        new = bring(new.detach(), owner(value))
    wrote(value)
    result = function(value, new)
    wrote(value)
    return result


def backward(function: Function, args: Any, kwargs: Any) -> Any:
    loss, *rest = args
    if rest and rest[0] is not None:
        rest[0] = bring(rest[0], owner(loss))
    elif kwargs.get("gradient") is not None:
        kwargs = {**kwargs, "gradient": bring(kwargs["gradient"], owner(loss))}
    whole = kwargs.get("inputs") is None and len(rest) < 4
    try:
        with accumulating() if whole else nullcontext():
            return function(loss, *rest, **kwargs)
    finally:
        forget()


def grad(function: Function, args: Any, kwargs: Any) -> Any:
    """`autograd.grad`: each gradient lives where its input does."""
    named = {**dict(zip(("outputs", "inputs", "grad_outputs"), args, strict=False)), **kwargs}
    inputs = named["inputs"]
    given = named.get("grad_outputs")
    if given is not None:
        pairs = zip(_tuple(given), _tuple(named["outputs"]), strict=True)
        named["grad_outputs"] = tuple(None if g is None else bring(g, owner(end)) for g, end in pairs)
    found = function(named.pop("outputs"), named.pop("inputs"), named.pop("grad_outputs", None), *args[3:], **named)
    for gradient, value in zip(found, _tuple(inputs), strict=True):
        if gradient is not None:
            give(gradient, owner(value))
    return found


def _tuple(values: Any) -> tuple[Any, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


@contextmanager
def listening() -> Iterator[None]:
    """The rules of the cell where they may be off, as inside a backward pass. On twice, they would meet what they do themselves."""
    rules = channel().rules
    on = any(torch._C._get_function_stack_at(place) is rules for place in range(torch._C._len_torch_function_stack()))
    with torch._C._EnableTorchFunction(), nullcontext() if on else rules:
        yield


def register(function: Function, value: Tensor, hook: Function) -> Any:
    """A hook that people register sees the rules of the cell."""
    return function(value, ruled(hook, value, getattr(function, "__name__", "") == "register_hook"))


def adopt(value: Tensor) -> None:
    """The same for hooks that were registered before the cell."""
    hooks: Any
    for hooks, on_gradient in ((value._backward_hooks, True), (value._post_accumulate_grad_hooks, False)):
        for key, hook in list((hooks or {}).items()):
            hooks[key] = ruled(hook, value, on_gradient)


def ruled(hook: Function, value: Tensor, on_gradient: bool) -> Function:
    """A hook of `value`, on its gradient or on itself. After the cell it is the plain hook again."""

    def within(given: Tensor) -> Any:
        if not connected():
            return hook(given)
        rank = owner(value)
        if on_gradient:
            give(given, rank)
        with listening():
            result = hook(given)
        return bring(result, rank) if isinstance(result, Tensor) else result

    return within


def foreach(function: Function, name: str, args: Any, kwargs: Any) -> Any:
    """Lists go position by position: one call for each owner."""
    lead = next(arg for arg in args if isinstance(arg, (list, tuple)))
    owners = [owner(value) for value in lead]
    results: list[Any] = [None] * len(lead)
    for rank in dict.fromkeys(owners):
        chosen = [i for i, other in enumerate(owners) if other == rank]

        def pick(arg: Any, rank: int | None = rank, chosen: list[int] = chosen) -> Any:
            if isinstance(arg, (list, tuple)) and len(arg) == len(lead):
                return [bring(arg[i], rank) if isinstance(arg[i], Tensor) else arg[i] for i in chosen]
            return bring(arg, rank) if isinstance(arg, Tensor) else arg

        if name.endswith("_"):
            for i in chosen:
                wrote(lead[i])
        made = function(*map(pick, args), **{key: pick(value) for key, value in kwargs.items()})
        for i, value in zip(chosen, made or [], strict=False):
            results[i] = value if rank is None else own(value, rank)
    return None if not results or results[0] is None else results


def unscale(function: Function, grads: list[Tensor], found: Tensor, inverse: Tensor) -> None:
    """GradScaler's check for infinities: a flag that any rank may raise."""
    owners = dict.fromkeys(owner(value) for value in grads)
    for rank in owners:
        mine = [value for value in grads if owner(value) == rank]
        for value in mine:
            wrote(value)
        flag = bring(torch.zeros_like(found), rank).clone()
        if rank is not None:
            give(flag, rank)
        function(mine, flag, bring(inverse, rank))
        wrote(found)
        found.copy_(torch.maximum(found, bring(flag, None)))


def refuse_functorch(operands: list[Tensor]) -> None:
    for value in operands:
        inner = value
        while torch._C._functorch.is_functorch_wrapped_tensor(inner):
            inner = torch._C._functorch.get_unwrapped(inner)
        if owner(inner) is not None:
            raise Unsupported(
                "torch.func and torch.vmap over a model whose layers are on different ranks; "
                "use torch.autograd.grad, or run the cell with %%parallel data"
            )
