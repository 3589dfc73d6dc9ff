"""Which way a program goes: the functions of torch that it calls, by name, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbpar.parallel.patch import ORIGINAL

PLAIN = (Tensor, nn.Parameter, type(None))


class Functions(TorchFunctionMode):
    """names: of what is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        own = getattr(func, ORIGINAL, func)  # torch looks a method up by its name: what stands for it is running already
        return own(*args, **kwargs) if kwargs else own(*args)


def unseen(original: Callable[..., bool]) -> Callable[..., bool]:
    """`torch.overrides.has_torch_function`, which attention asks before its fast path: being watched is no reason."""

    def has(values: Iterable[Any]) -> bool:
        if torch.compiler.is_compiling():  # first: the compiler reads on from here
            return original(values)
        values = tuple(values)
        only = torch._C._len_torch_function_stack() == 1 and isinstance(torch._C._get_function_stack_at(0), Functions)
        return not (only and all(type(value) in PLAIN for value in values)) and original(values)

    return has
