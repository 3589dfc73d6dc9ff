"""Autograd functions of nbpar's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function


def of_class(method: Any) -> Callable[..., Any]:
    """What a class method calls with its class. From torch 2.14 on `Function.apply` is one of C, which does not tell."""
    return getattr(method, "__func__", None) or (lambda cls, *args, **kwargs: method.__get__(None, cls)(*args, **kwargs))


_APPLY = of_class(Function.__dict__["apply"])
_IN_PYTHON = hasattr(Function.__dict__["apply"], "__func__")


class Inner(Function):
    """A mode may replace `Function.apply` for the functions that people write; these keep torch's, and what it does in Python only
    where it is needed."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if not _IN_PYTHON or torch._C._are_functorch_transforms_active():
            return _APPLY(cls, *args)
        return super(Function, cls).apply(*args)  # type: ignore[misc]
