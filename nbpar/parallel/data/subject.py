"""What a split call calls: a module, or a function marked with `nbpar.split`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Subject:
    """run: the call itself, as it would be without this mode. modules, parameters: in an order that all ranks share."""

    def __init__(self, key: Any, run: Callable[..., Any], module: nn.Module | None) -> None:
        self.key, self.run, self.module = key, run, module
        self.refresh()

    def refresh(self) -> None:
        """Look at the module again: parts and parameters may have come or gone."""
        self.modules = list(self.module.modules()) if self.module is not None else []
        self.parameters = list(self.module.parameters()) if self.module is not None else []
        self.place = {id(parameter): at for at, parameter in enumerate(self.parameters)}

    @property
    def name(self) -> str:
        return type(self.module).__name__ if self.module is not None else getattr(self.key, "__name__", "function")

    def trial(self, *args: Any, **kwargs: Any) -> Any:
        """The call for a look at few rows: a compiled module is not compiled anew for them."""
        eager = getattr(self.module, "_orig_mod", None)
        return eager(*args, **kwargs) if eager is not None else self.run(*args, **kwargs)

    @contextmanager
    def disturbed(self, double: bool) -> Iterator[None]:
        """Weights that are not what initialisation made them: a layer of zeros hides how rows mix behind it.

        The tensors themselves stay as they are; what they show for the while is another. double: in float64.
        """
        weights = [p for p in self.parameters if p.is_floating_point()]
        buffers = [b for module in self.modules for b in module._buffers.values() if b is not None and b.is_floating_point()]
        kept = [(tensor, tensor.data) for tensor in (*weights, *buffers)]
        noise = torch.rand(1021, generator=torch.Generator().manual_seed(7), dtype=torch.float64) - 0.5
        try:
            for weight in weights:
                weight.data = shaken(weight.data, noise, double)
            for buffer in buffers:
                buffer.data = buffer.data.double() if double else buffer.data.clone()
            yield
        finally:
            for tensor, data in kept:
                tensor.data = data


def shaken(weight: Tensor, noise: Tensor, double: bool) -> Tensor:
    """The weight plus noise of a tenth of its spread, and a little where it has none."""
    new = weight.double() if double else weight.clone()
    spread = float(new.std(correction=0)) if new.numel() > 1 else 0.0
    pattern = noise.to(new.device, new.dtype) * (0.2 * spread + 0.02)
    flat = new.reshape(-1)
    repeats = -(-flat.numel() // noise.numel())
    return (flat + pattern.repeat(repeats)[: flat.numel()]).view(weight.shape)
