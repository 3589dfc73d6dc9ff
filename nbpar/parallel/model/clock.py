"""How long each layer takes in one call of its model: what `--balance time` divides alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nbpar.parallel.data.draws import Streams
from nbpar.parallel.data.state import State
from nbpar.parallel.patch import patched

from .layers import Layer

RUNS = 3  # the first warms up


def seconds(layers: Sequence[Layer], model: nn.Module, args: Any, kwargs: Any) -> list[float] | None:
    """Of each layer in this call, without gradients; None if the call fails: then it will say so itself.

    What happens between two layers counts for the one before. No trace is left on the model, its arguments or random streams.
    """
    best = [float("inf")] * len(layers)
    for _ in range(RUNS):
        kept, streams, clock = State(list(model.modules())), Streams.now(), Clock(len(layers))
        copies, named = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, (args, kwargs))
        try:
            with torch.no_grad(), _plainly_called(), clock.on(layers):
                model(*copies, **named)
        except Exception:
            return None
        finally:
            kept.put_back()
            streams.put_back()
        best = [min(pair) for pair in zip(best, clock.seconds, strict=True)]
    return best


def _plainly_called() -> Any:
    """Modules are called as ever, whatever a mode makes of their calls."""
    return patched(nn.Module, "__call__", lambda _: nn.Module._wrapped_call_impl)


class Clock:
    """Gives the time that passes to the layer that runs, or ran last."""

    def __init__(self, count: int) -> None:
        self.seconds = [0.0] * count
        self._inside: list[int] = []
        self._last = 0
        self._began = 0.0

    @contextmanager
    def on(self, layers: Sequence[Layer]) -> Iterator[None]:
        hooks = []
        for at, layer in enumerate(layers):
            hooks.append(layer.module.register_forward_pre_hook(lambda *_, at=at: self._enter(at)))
            hooks.append(layer.module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        self._began = time.perf_counter()
        try:
            yield
        finally:
            self._tick()
            for hook in hooks:
                hook.remove()

    def _enter(self, at: int) -> None:
        self._tick()
        self._inside.append(at)
        self._last = at

    def _leave(self) -> None:
        self._tick()
        self._inside.pop()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1] if self._inside else self._last] += now - self._began
        self._began = now
