"""Values leave for other ranks as soon as they are made, so that branches on different ranks run at the same time.

In `a(h) + b(h)`, with `a` here and `b` there, `h` would be sent when `b` is called, after `a` has run. Which values travel, and
where to, is learnt: a value is known by its place in the order of operations since a model was called. A value that is then not
used costs one message. Seen with it: whether ranks take turns, so that one of them works at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .channel import channel
from .home import owner
from .operands import tensors
from .transfer import send_ahead

Position = tuple[int, int]  # which operation since the call began, which of its results


@dataclass
class Ways:
    """Where the values of one kind of call travel. learning: whether it is to be seen which: in the first calls, and again after a
    value has travelled that was not known to. in_turn: whether one rank works at a time; None until a first backward pass
    has ended."""

    ranks: dict[Position, list[int]] = field(default_factory=dict)
    learning: bool = True
    news: bool = True  # in the call that was begun last
    in_turn: bool | None = None


@dataclass
class Turns:
    """Of the ranks, in a call: whether each begins with what the one before it has made last."""

    hold: bool = True
    rank: int | None = None  # whose turn it is
    then: int | None = None  # where its newest result went

    def work(self, rank: int | None) -> None:
        """This rank makes something."""
        if rank is not None:
            self.hold &= self.rank in (None, rank) or self.then == rank
            self.rank, self.then = rank, None


class Early:
    """Follows the operations since the last call of a model."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, Ways]] = WeakKeyDictionary()
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (ways, position)
        self._ways = Ways()
        self._count = 0
        self._turns: Turns | None = None  # in a first call

    def begin(self, model: nn.Module) -> None:
        """The model is called."""
        ways = self._ways = self._of(model)
        ways.learning, ways.news = ways.news, False
        self._count = 0
        self._turns = Turns() if ways.in_turn is None else None

    def _of(self, model: nn.Module) -> Ways:
        return self._known.setdefault(model, {}).setdefault((model.training, torch.is_grad_enabled()), Ways())

    def in_turn(self, model: nn.Module) -> bool:
        """Whether in a call of this model, and in its backward pass, one rank works at a time, as far as is known."""
        return self._of(model).in_turn is not False

    def made(self, result: Any) -> None:
        """An operation gave this; the same on all ranks, but while an optimiser steps."""
        if channel().stepping_since is not None:
            return
        self._count += 1
        ways = self._ways
        values = (result,) if isinstance(result, Tensor) else tensors(result)
        if self._turns is not None and values:
            self._turns.work(owner(values[0]))
        for index, value in enumerate(values):
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
        if self._turns is None:
            ways.in_turn = False  # it may be another in each call
        elif position[0] == self._count:
            self._turns.then = to
        ranks = ways.ranks.setdefault(position, [])
        if to not in ranks:
            ranks.append(to)
            ways.news = True

    def forget(self) -> None:
        """Values that are there already are not sent ahead."""
        self._made.clear()
        if self._turns is not None and self._turns.rank is not None:  # a backward pass has ended, not within an optimiser's step
            self._ways.in_turn, self._turns = self._turns.hold, None
