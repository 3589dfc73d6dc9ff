"""Which way a program goes: the functions of torch that it calls, by name, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

from nbpar.parallel.patch import ORIGINAL


class Functions(TorchFunctionMode):
    """names: of what is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        own = getattr(func, ORIGINAL, func)  # torch looks a method up by its name: what stands for it is running already
        return own(*args, **kwargs) if kwargs else own(*args)
