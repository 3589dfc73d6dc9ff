"""The split call that is running, if any. The one global state of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nbpar.parallel.data.answers import Answers
from nbpar.parallel.data.layouts import Share
from nbpar.parallel.data.ranks import ROOM, Ranks

if TYPE_CHECKING:
    from nbpar.parallel.data.gradients import Gradients


class Stopped(BaseException):
    """This split call cannot go on, here or on another rank: it is put back and run whole."""


@dataclass(eq=False)
class Call:
    """One split call, which its autograd nodes keep.

    leaves: tensors whose gradients come from this call, alike on all ranks. even: all ranks reach the same of them.
    plan: how it is split; None in a trial, and where a whole cell is one call. trial: nothing comes of it.
    answers: to what it asks of all rows; None where that is not followed.
    """

    share: Share
    ranks: Ranks
    gradients: Gradients
    leaves: list[Tensor] = field(default_factory=list)
    even: bool = False
    hidden: bool = False
    reads_allowed: bool = True
    local_batchnorm: bool = False
    over: bool = False
    plan: Any = None
    trial: bool = False
    answers: Answers | None = None
    draws: Any = None
    statistics: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # of BatchNorm over each rank's own rows

    def gather(self, own: Tensor) -> Tensor:
        """Inside the call: every rank's numbers (k) as (N, k), float64. Raises Stopped if another rank has left the call."""
        small = own.numel() <= ROOM and own.device.type == "cpu" and not self.over
        if not self.over:
            ok, same, every = self.ranks.agree(True, payload=own.detach().double() if small else None)
            if not (ok and same[0]):
                self.over = True
                raise Stopped
            if every is not None:
                return every
        return self.ranks.gather(own[None].double(), (1,) * self.ranks.size, "inside")

    def reached(self) -> None:
        """A backward pass enters the call."""
        self.gradients.reached(self)


running: Call | None = None
busy = 0  # inside any call, split or whole: inner modules are not calls of their own


record: Any = None  # watches a whole trial


@contextmanager
def watching(watcher: Any) -> Iterator[None]:
    """Reads of values by Python are told to `watcher`, a draws.Record."""
    global record
    record = watcher
    try:
        yield
    finally:
        record = None


def trying() -> bool:
    """Whether what runs now, whole or split, is a trial."""
    return record is not None or (running is not None and running.trial)


log: Any = None  # a list of what operators are seen, as rowwise.Step


@contextmanager
def logging(steps: Any) -> Iterator[Any]:
    """Operators are written to `steps`; None: to nothing."""
    global log
    before, log = log, steps
    try:
        yield steps
    finally:
        log = before


unseen = False  # what is read meanwhile is this package's business


@contextmanager
def reading_unseen() -> Iterator[None]:
    """Nothing is told of what Python reads."""
    global unseen
    before, unseen = unseen, True
    try:
        yield
    finally:
        unseen = before


def read(tensor: Tensor, *, shares: bool = False) -> None:
    """Python reads a tensor's value, or shares its memory. Raises Stopped in a split call that was not seen to do so."""
    if unseen:
        return
    if record is not None:
        record.read(tensor, shares=shares)
    elif running is not None and not running.over and not running.reads_allowed:
        raise Stopped("Python reads a value in it that its first call did not read")


def read_remote() -> None:
    """Python reads a value that other ranks hold, which may depend on the rows: a call that does so is not split."""
    if unseen:
        return
    if record is not None:
        record.reads = record.reads_rows = True
    elif running is not None and not running.over:
        raise Stopped("Python reads a value in it that its first call did not read")


@contextmanager
def inside(call: Call | None) -> Iterator[None]:
    """Run what belongs to this call; None: to a whole one."""
    global running, busy
    before = running
    running, busy = call, busy + 1
    try:
        yield
    finally:
        running, busy = before, busy - 1
