"""Activation checkpointing under the mode: results are the same, but activations are kept.

Recomputing moves values a second time, on ranks that save something alone, so the function simply runs. What else
recomputing does in one process is done here too: buffers (BatchNorm's statistics) change a second time, once the
backward pass gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .channel import channel
from .operands import tensors
from .special import listening

LINE = "activation checkpointing: results are the same, but activations are kept"


class Region:
    """A checkpointed call. Where it changes buffers, the first gradient that reaches such a place runs it once more."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.call = function, args, kwargs
        self.state = torch.get_rng_state()
        self.again = False
        self.rules: Any = channel().rules

    def __enter__(self) -> Region:
        self.outer, self.rules.on_change = self.rules.on_change, self._changed
        return self

    def __exit__(self, *_: object) -> None:
        self.rules.on_change = self.outer

    def _changed(self, result: Any) -> None:
        for value in tensors(result):
            if value.requires_grad:
                value.register_hook(self._recompute)
                return

    def _recompute(self, _: Tensor) -> None:
        if self.again:
            return
        self.again = True
        function, args, kwargs = self.call
        now = torch.get_rng_state()
        torch.set_rng_state(self.state)
        with torch.no_grad(), listening():
            function(*args, **kwargs)
        torch.set_rng_state(now)


def reentrant(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    """Stands for CheckpointFunction.apply: results have a gradient only if an argument has."""
    differentiable = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
    with torch.set_grad_enabled(torch.is_grad_enabled() and differentiable), Region(function, args, {}):
        return function(*args)


def generator(function: Callable[..., Any], *options: Any, **kwargs: Any) -> Iterator[None]:
    """Stands for torch's generator of the other kind: its caller runs the function between the two steps."""
    _, _, _, _, _, *args = options
    with Region(function, args, kwargs):
        yield
