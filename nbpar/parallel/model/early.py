"""Values leave for other ranks as soon as they are made, so that branches on different ranks run at the same time.

In `a(h) + b(h)`, with `a` here and `b` there, `h` would be sent when `b` is called, after `a` has run. Which values travel, and
where to, is learnt: a value is known by its place in the order of operations since a model was called. A value that is then not
used costs one message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .channel import channel
from .operands import tensors
from .transfer import send_ahead

Position = tuple[int, int]  # which operation since the call began, which of its results


@dataclass
class Ways:
    """Where the values of one kind of call travel. learning: whether it is to be seen which: in the first calls, and again after a
    value has travelled that was not known to."""

    ranks: dict[Position, list[int]] = field(default_factory=dict)
    learning: bool = True
    news: bool = True  # in the call that was begun last


class Early:
    """Follows the operations since the last call of a model."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, Ways]] = WeakKeyDictionary()
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (ways, position)
        self._ways = Ways()
        self._count = 0

    def begin(self, model: nn.Module) -> None:
        """The model is called."""
        key = model.training, torch.is_grad_enabled()
        ways = self._ways = self._known.setdefault(model, {}).setdefault(key, Ways())
        ways.learning, ways.news = ways.news, False
        self._count = 0

    def made(self, result: Any) -> None:
        """An operation gave this; the same on all ranks, but while an optimiser steps."""
        if channel().stepping_since is not None:
            return
        self._count += 1
        ways = self._ways
        for index, value in enumerate((result,) if isinstance(result, Tensor) else tensors(result)):
            position = self._count, index
            if ways.learning:
                self._made[value] = ways, position
            for rank in ways.ranks.get(position, ()):
                send_ahead(value, rank)

    def moved(self, value: Tensor, to: int) -> None:
        """This value was needed on that rank."""
        if value not in self._made:
            self._ways.news |= not self._ways.learning
            return
        ways, position = self._made[value]
        ranks = ways.ranks.setdefault(position, [])
        if to not in ranks:
            ranks.append(to)
            ways.news = True

    def forget(self) -> None:
        """Values that are there already are not sent ahead."""
        self._made.clear()
