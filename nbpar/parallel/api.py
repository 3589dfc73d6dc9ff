"""What a cell may call: the rank, the size of the world, and `split`. Outside a world each is an identity."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

# Set by the mode that splits calls while it lasts: (wrapped function, batch dimension, args, kwargs) -> result.
splitter: Callable[[Any, int | None, tuple[Any, ...], dict[str, Any]], Any] | None = None
# Called when a cell asks who it is: ranks may part ways from then on.
asked: Callable[[], None] | None = None


def _world() -> Any:
    distributed = sys.modules.get("torch.distributed")
    ready = distributed and distributed.is_available() and distributed.distributed_c10d.is_initialized()
    return distributed if ready else None


def rank() -> int:
    """This process's rank; 0 outside a world."""
    if asked:
        asked()
    world = _world()
    return world.get_rank() if world else 0


def size() -> int:
    """The number of ranks; 1 outside a world."""
    world = _world()
    return world.get_world_size() if world else 1


def split(function: Callable[..., Any] | None = None, *, batch_dim: int | None = None) -> Any:
    """Make any function a split call: under `%%parallel data` each rank computes its rows of the arguments.

    The function must treat the rows of its tensor arguments independently; its first call is compared with a whole one.
    batch_dim: the dimension of the rows, where it is not found by itself. Used as `@nbpar.split`, as
    `@nbpar.split(batch_dim=1)` or as `nbpar.split(function, batch_dim=1)`. A function that mixes rows runs whole on every
    rank, and a line says so. Outside of `%%parallel data` it is the function itself.
    """
    if function is None:
        return functools.partial(split, batch_dim=batch_dim)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return splitter(call, batch_dim, args, kwargs) if splitter else function(*args, **kwargs)

    return call
