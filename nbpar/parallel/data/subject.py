"""What a split call calls: a module, or a function marked with `nbpar.split`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Subject:
    """run: the call itself, as it would be without this mode. modules, parameters: in an order that all ranks share.

    compiled: whether a part is, which would be compiled anew where functions are watched.
    tried: rows that looks have put through it here, in units of the batches that they were of.
    """

    tried = 0.0

    def __init__(self, key: Any, run: Callable[..., Any], module: nn.Module | None) -> None:
        self.key, self.run, self.module = key, run, module
        self.refresh()

    def refresh(self) -> None:
        """Look at the module again: parts and parameters may have come or gone."""
        self.modules = list(self.module.modules()) if self.module is not None else []
        self.parameters = list(self.module.parameters()) if self.module is not None else []
        self.compiled = any("_orig_mod" in module._modules for module in self.modules)
        self.place = {id(parameter): at for at, parameter in enumerate(self.parameters)}

    def held(self) -> tuple[Tensor, ...]:
        """Parameters and buffers that count what is written to them."""
        return tuple(value for value in self.tensors() if not value.is_inference())

    def tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers."""
        values = (value for module in self.modules for value in (*module._parameters.values(), *module._buffers.values()))
        return (value for value in values if value is not None)

    @property
    def training(self) -> bool:
        return self.module is not None and self.module.training

    @property
    def name(self) -> str:
        return type(self.module).__name__ if self.module is not None else getattr(self.key, "__name__", "function")

    @property
    def precise(self) -> bool:
        """Whether it has weights, and all of them in single or double precision."""
        weights = [weight for weight in self.parameters if weight.is_floating_point()]
        return bool(weights) and all(weight.dtype in (torch.float32, torch.float64) for weight in weights)

    def trial(self, *args: Any, **kwargs: Any) -> Any:
        """The call for a look at few rows: a compiled module is not compiled anew for them."""
        eager = getattr(self.module, "_orig_mod", None)
        return eager(*args, **kwargs) if eager is not None else self.run(*args, **kwargs)

    @contextmanager
    def disturbed(self, double: bool) -> Iterator[Callable[[], None]]:
        """Weights that are not what initialisation made them: a layer of zeros hides how rows mix behind it.

        The tensors' own data stay as they are; what they show for the while is another. double: in float64.
        Gives a function that shows the disturbed weights afresh, should the call have written to them.
        """
        with torch.inference_mode(False):
            weights: list[tuple[Tensor, Tensor]] = [(w, w.data) for w in self.parameters if w.is_floating_point()]
            buffers = [b for module in self.modules for b in module._buffers.values() if b is not None and b.is_floating_point()]
            instead = [(b, b.data.double() if double else b.data.clone()) for b in buffers]

        def show() -> None:
            with torch.inference_mode(False):  # data of the kind that weights have
                for weight, data in weights:
                    weight.data = shaken(data, double)

        with shown(weights), shown(instead):
            show()
            yield show

    def fingerprint(self, total: Callable[[Tensor], float] | None) -> list[tuple[int, float]]:
        """Changes when a weight is replaced or shows other memory; with its `total` also when it is written to."""
        weights = list(self.module.parameters()) if self.module is not None else []
        return [(id(weight), total(weight) if total else weight.data_ptr()) for weight in weights]

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Whatever is written to the weights meanwhile is forgotten."""
        with torch.inference_mode(False):
            copies: list[tuple[Tensor, Tensor]] = [(weight, weight.data.clone()) for weight in self.parameters]
        with shown(copies):
            yield


@contextmanager
def shown(instead: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Tensors show other data for a while."""
    with torch.inference_mode(False):
        kept = [(tensor, tensor.data) for tensor, _ in instead]
    try:
        for tensor, data in instead:
            tensor.data = data
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


NOISE = torch.rand(1021, generator=torch.Generator().manual_seed(7), dtype=torch.float64) - 0.5


def shaken(weight: Tensor, double: bool) -> Tensor:
    """The weight plus noise of a tenth of its spread, a little where it has none, and more where all is zero."""
    new = weight.to(torch.float64 if double else weight.dtype, memory_format=torch.contiguous_format, copy=True)
    sample = new.view(-1)[:4096]
    spread = float(sample.std(correction=0)) if sample.numel() > 1 else 0.0
    pattern = NOISE.to(new.device, new.dtype) * (0.2 * spread + (0.02 if spread or sample.any() else 0.2))
    for part in new.view(-1).split(len(NOISE) * 1024):
        even = len(part) // len(NOISE) * len(NOISE)
        part[:even].view(-1, len(NOISE)).add_(pattern)
        part[even:].add_(pattern[: len(part) - even])
    return new
