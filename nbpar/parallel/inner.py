"""Autograd functions of nbpar's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd import Function


def of_class(method: Any) -> Callable[..., Any]:
    """What a class method calls with its class. From torch 2.14 on `Function.apply` is one of C, which does not tell."""
    return getattr(method, "__func__", None) or (lambda cls, *args, **kwargs: method.__get__(None, cls)(*args, **kwargs))


class Inner(Function):
    """A mode may replace `Function.apply` for the functions that people write; these keep torch's."""

    apply: Any = classmethod(of_class(Function.__dict__["apply"]))
