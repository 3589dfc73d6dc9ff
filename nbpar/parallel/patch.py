"""Replace an attribute for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

ORIGINAL = "_nbpar_original"  # attribute of a function that stands for another, and may call it


@contextmanager
def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """While it lasts, `owner.name` is what `make` makes of it; one that was inherited is inherited again afterwards."""
    own = name in vars(owner)
    original = getattr(owner, name)
    made = make(original)
    if isinstance(made, FunctionType):
        made.__dict__[ORIGINAL] = original
    setattr(owner, name, made)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
