"""Values leave for other ranks as soon as they are made, so that branches on different ranks run at the same time.

In `a(h) + b(h)`, with `a` here and `b` there, `h` would be sent when `b` is called, after `a` has run. Which values travel, and
where to, is learnt: a value is known by its place in the order of operations since a model was called. A value that is then not
used costs one message.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .channel import channel
from .operands import tensors
from .transfer import send_ahead

Position = tuple[int, int]  # which operation since the call began, which of its results
Ways = dict[Position, list[int]]


class Early:
    """Follows the operations since the last call of a model."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, Ways]] = WeakKeyDictionary()
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (ways, position)
        self._ways: Ways = {}
        self._count = 0

    def begin(self, model: nn.Module) -> None:
        """The model is called."""
        key = model.training, torch.is_grad_enabled()
        self._ways = self._known.setdefault(model, {}).setdefault(key, {})
        self._count = 0

    def made(self, result: Any) -> None:
        """An operation gave this; the same on all ranks, but while an optimiser steps."""
        if channel().stepping_since is not None:
            return
        self._count += 1
        for index, value in enumerate(tensors(result)):
            position = self._count, index
            self._made[value] = self._ways, position
            for rank in self._ways.get(position, ()):
                send_ahead(value, rank)

    def moved(self, value: Tensor, to: int) -> None:
        """This value was needed on that rank."""
        if value in self._made:
            ways, position = self._made[value]
            ranks = ways.setdefault(position, [])
            if to not in ranks:
                ranks.append(to)

    def forget(self) -> None:
        """Values that are there already are not sent ahead."""
        self._made.clear()
