"""A rank that works while all others of its host wait uses their cores too.

    rank 0   F0 F1 F2 F3 .  .  B3 B2 B1 B0        F0: rank 0 alone has something to do, until it sends what rank 1 waits for
    rank 1   .  F0 F1 F2 F3 B3 B2 B1 B0           F3, the loss and B3: rank 1 alone, until it sends

    rank 0   F  .  .  B                           a call that is not made in pieces, of a model in which one rank works at a time:
    rank 1   .  F  B  .                           whoever works, until the end of the backward pass

When that is follows from the schedule. Small operations are slower with more threads, so some steps are made with them and some
without, and measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import nn

from nbpar.ranks import machine

from .channel import Channel
from .home import owner
from .layers import parts_of
from .pace import Pace


class Cores:
    """Of the ranks that share a model. To be asked by all of them alike. in_turn: whether in a call of a model, and in its backward
    pass, one rank works at a time."""

    def __init__(self, channel: Channel, in_turn: Callable[[nn.Module], bool]) -> None:
        self._channel, self._in_turn = channel, in_turn
        self._stages: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
        self._paces: WeakKeyDictionary[nn.Module, dict[int, Pace[bool]]] = WeakKeyDictionary()  # and by number of pieces
        self._own = 0  # threads of this rank, while it has more
        self._with_more = False  # whether this call is made with more threads
        self._until_sent = False
        self._open = False  # a call is begun, and its backward pass not over
        self._overlap = False  # calls are begun before the last one is over: ranks may work on one and on another

    def begin(self, model: nn.Module, piece: int, pieces: int) -> None:
        """This piece of a call of the model comes next."""
        from nbpar.comm import lend  # begins MPI, which a kernel that rehearses a plan must not

        self.give_back()
        if not torch.is_grad_enabled():  # then a rank that is done goes on with the next call
            return
        self._overlap |= self._open and not piece
        self._open = True
        alone = not self._overlap and (pieces > 1 or self._in_turn(model))
        more = alone and self._quicker(model, piece, pieces)
        stages = self._stages_of(model) if more else []
        if lend(more) and self._channel.rank in stages:
            slot = stages.index(self._channel.rank) + piece
            at_work = sum(0 <= slot - stage < pieces for stage in range(len(stages)))
            self._borrow(len(stages) // at_work)
            self._until_sent = pieces > 1

    def sent(self) -> None:
        """What another rank waits for."""
        if self._until_sent:
            self.give_back()

    def end(self) -> None:
        """A backward pass is over."""
        self._open = False
        self.give_back()

    def give_back(self) -> None:
        if self._own:
            torch.set_num_threads(self._own)
            self._own = 0

    @contextmanager
    def returned(self) -> Iterator[None]:
        """After what runs inside, all cores are where they were."""
        from nbpar.comm import lend

        try:
            yield
        finally:
            self.give_back()
            lend(False)

    def _quicker(self, model: nn.Module, piece: int, pieces: int) -> bool:
        pace = self._paces.setdefault(model, {}).setdefault(pieces, Pace((False, True), expected=True))
        if not piece:
            self._with_more = pace.way()
        return self._with_more

    def _stages_of(self, model: nn.Module) -> list[int]:
        """The ranks of this host in the order in which the model comes by them. Collective at first."""
        if model not in self._stages:
            values = [value for part in parts_of(model) for value in part._parameters.values() if value is not None]
            hosts = self._channel.gather(os.uname().nodename)
            here = hosts[self._channel.rank]
            found = [rank for rank in map(owner, values) if rank is not None and hosts[rank] == here]
            self._stages[model] = list(dict.fromkeys(found))
        return self._stages[model]

    @cached_property
    def _most(self) -> int:
        """Threads that can run at a time here."""
        return machine.cores()

    def _borrow(self, times: int) -> None:
        own = torch.get_num_threads()
        threads = min(times * own, self._most)
        if threads > own and str(own) == os.environ.get("OMP_NUM_THREADS"):  # else a person has chosen
            self._own = own
            torch.set_num_threads(threads)
