"""Which way a program goes: the functions of torch that it calls, by name, in order, and along which dimensions they work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbpar.parallel.patch import ORIGINAL

PLAIN = (Tensor, nn.Parameter, type(None))
CONSTANTS = (int, bool, str, type(None))
WITH_DIMENSIONS = """
    all amax amin aminmax any argmax argmin argsort cat concat concatenate count_nonzero cummax cummin cumprod cumsum diff flip
    gather glu index_add index_copy index_fill index_select kthvalue log_softmax logcumsumexp logsumexp matrix_norm max mean
    median min mode movedim moveaxis nanmean nanmedian nanquantile nansum norm normalize permute prod quantile scatter scatter_add
    scatter_reduce softmax softmin sort squeeze stack std std_mean sum swapaxes swapdims take_along_dim topk transpose
    unbind unique unique_consecutive unsqueeze var var_mean vector_norm
    batch_norm cosine_similarity gumbel_softmax instance_norm layer_norm pairwise_distance renorm
"""
# By name, the arguments that may say along which dimension a function works.
ALONG = {
    **dict.fromkeys(WITH_DIMENSIONS.split(), slice(1, None)),
    **dict.fromkeys(("select", "unflatten"), slice(1, 2)),
    **dict.fromkeys(("einsum", "tensordot"), slice(0, None)),
    "roll": slice(2, None),
}
INDEXED = ("__getitem__", "__setitem__")
SAYS_MORE = frozenset((*ALONG, *INDEXED))


def step(name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Hashable:
    """One function of a way."""
    if name in ALONG:
        named = [(key, _constants(value)) for key, value in kwargs.items()] if kwargs else ()
        return name, *map(_constants, args[ALONG[name]]), *named
    return (name, _form(args[1])) if name in INDEXED else name


def _constants(value: Any) -> Hashable:
    if isinstance(value, tuple | list):
        return tuple(map(_constants, value))
    return repr(value) if isinstance(value, CONSTANTS) else "…"  # not the number: -1 and -2 have one hash


def _form(index: Any) -> Hashable:
    """Which dimensions an index takes from, not what."""
    if isinstance(index, tuple):
        return tuple(map(_form, index))
    return (index.start is None, index.stop is None) if isinstance(index, slice) else type(index).__name__


class Functions(TorchFunctionMode):
    """steps: what is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Hashable] = []
        self.within = False  # a function that counts as one

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.within:
            name = getattr(func, "__name__", "")
            self.steps.append(step(name, args, kwargs) if name in SAYS_MORE else name)
        own = getattr(func, ORIGINAL, func)  # torch looks a method up by its name: what stands for it is running already
        return own(*args, **kwargs) if kwargs else own(*args)


@contextmanager
def as_one(name: str) -> Iterator[None]:
    """What is called inside counts as one function, whatever else that calls."""
    functions = _watching()
    if functions is None or functions.within:
        yield
        return
    functions.steps.append(name)
    functions.within = True
    try:
        yield
    finally:
        functions.within = False


def _watching() -> Functions | None:
    count = torch._C._len_torch_function_stack()
    top = torch._C._get_function_stack_at(count - 1) if count else None
    return top if isinstance(top, Functions) else None


def unseen(original: Callable[..., bool]) -> Callable[..., bool]:
    """`torch.overrides.has_torch_function`, which attention asks before its fast path: being watched is no reason."""

    def has(values: Iterable[Any]) -> bool:
        if torch.compiler.is_compiling():  # first: the compiler reads on from here
            return original(values)
        values = tuple(values)
        only = torch._C._len_torch_function_stack() == 1 and _watching() is not None
        return not (only and all(type(value) in PLAIN for value in values)) and original(values)

    return has
