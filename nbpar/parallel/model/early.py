"""Values leave for other ranks as soon as they are made, so that branches on different ranks run at the same time.

In `a(h) + b(h)`, with `a` here and `b` there, `h` would be sent when `b` is called, after `a` has run. Which values of a
model's call travel, and where to, is learnt from its last call: a value is known by its place in the order of operations.
A value that is then not used costs one message.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from . import transfer
from .operands import tensors

Position = tuple[int, int]  # which operation of the call, which of its results
Ways = dict[Position, list[int]]


class Early:
    """Follows one call of a model at a time."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, Ways]] = WeakKeyDictionary()
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (ways, position)
        self._ways: Ways | None = None
        self._count = 0

    def begin(self, model: nn.Module) -> None:
        key = model.training, torch.is_grad_enabled()
        self._ways = self._known.setdefault(model, {}).setdefault(key, {})
        self._count = 0

    def end(self) -> None:
        self._ways = None
        self._made.clear()

    def made(self, result: Any) -> None:
        """An operation of the call gave this; the same on all ranks."""
        if self._ways is None:
            return
        self._count += 1
        for index, value in enumerate(tensors(result)):
            position = self._count, index
            self._made[value] = self._ways, position
            for rank in self._ways.get(position, ()):
                transfer.bring(value, rank)

    def moved(self, value: Tensor, to: int) -> None:
        """The call needed this value on that rank."""
        if value in self._made:
            ways, position = self._made[value]
            ranks = ways.setdefault(position, [])
            if to not in ranks:
                ranks.append(to)
