"""Which way a program goes: the functions of torch that it calls, by name, in order, and along which dimensions they work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, get_testing_overrides

from nbpar.parallel.patch import ORIGINAL

PLAIN = (Tensor, nn.Parameter, type(None))
CONSTANTS = (int, bool, str, type(None))
INDEXED = ("__getitem__", "__setitem__")
# Parameters of torch's functions that say along which dimensions they work, or whether they take all rows together.
DIMENSIONS = frozenset((
    "dim", "dims", "axis", "axes", "dim0", "dim1", "dim2", "axis0", "axis1", "start_dim", "end_dim", "source", "destination",
    "training", "use_input_stats", "batch_first",
))  # fmt: skip
# Functions of which torch's own list does not name them.
REDUCING = ("argmax", "argmin", "count_nonzero", "logsumexp", "max", "min", "prod")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def along() -> dict[str, slice]:
    """By name of a function, the arguments that are such parameters."""
    found = {**dict.fromkeys(REDUCING, slice(1, None)), "einsum": slice(0, 1), "instance_norm": slice(5, 6)}
    for function, like in get_testing_overrides().items():
        code = like.__code__
        parameters = code.co_varnames[: code.co_argcount]
        at = [number for number, parameter in enumerate(parameters) if parameter in DIMENSIONS]
        if at and function.__name__ != "tile":  # its `dims` are sizes
            found[function.__name__] = slice(at[0], None if at[-1] == len(parameters) - 1 else at[-1] + 1)
    return {**found, **dict.fromkeys(RECURRENT, slice(3, None))}


ALONG = along()


def step(name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Hashable:
    """One function of a way."""
    where = ALONG.get(name)
    if where is not None:
        named = [(key, _constants(value)) for key, value in kwargs.items() if key in DIMENSIONS] if kwargs else ()
        return name, *map(_constants, args[where]), *named
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
            self.steps.append(step(getattr(func, "__name__", ""), args, kwargs))
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
