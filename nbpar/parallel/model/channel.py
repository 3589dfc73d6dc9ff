"""What ranks say to each other: the only module of this mode that communicates.

Messages between two ranks are matched by their order, never by tags: NCCL has none. Every message goes as bytes, so
that any backend carries any dtype. Each call says at which moment of the cell it is made: where the ranks compare what they
call, those that have not done the same until then are found out.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .home import empty


class Channel:
    """The ranks that share a model: one process group, by default all ranks.

    everyone: the ranks that run the cell in lockstep, several such groups in a mesh; by default the group itself.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, everyone: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.everyone = everyone or group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)
        self.messages = self.broadcasts = self.bytes = 0
        self.device = torch.device("cpu")
        self.rules: AbstractContextManager[Any] = nullcontext()  # the cell's mode, for hooks inside a backward pass
        self.on_move: Callable[[Tensor, int], None] | None = None  # told what moves where
        self.on_forget: Callable[[], None] | None = None  # told when copies are dropped
        self.on_send: Callable[[], None] | None = None  # told that this rank has what another one waits for
        self.on_read: Callable[[], None] | None = None  # told that all ranks get a value that one holds
        self.operations = 0  # of the cell on owned values so far, alike on all ranks but while an optimiser steps
        self.stepping_since: int | None = None  # what it was before that
        self.in_step = False  # whether a submodule runs as one step: inside it torch is as ever
        self._edges = self._expected = 0
        self._log = hashlib.blake2b(digest_size=8)
        self._sending: deque[tuple[Any, Tensor]] = deque()
        self._coming: dict[int, tuple[Any, Tensor]] = {}  # by their number

    def edge(self, kind: str, *what: object) -> None:
        """Every rank notes every edge, its own or not: the notes are compared at the end."""
        self._edges += 1
        self._log.update(repr((kind, what)).encode())

    def _now(self) -> AbstractContextManager[None]:
        from nbpar.comm import moment  # begins MPI, which a kernel that rehearses a plan must not

        return moment(self._edges + (self.operations if self.stepping_since is None else self.stepping_since))

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What runs inside is at no moment of the cell: other rows of a mesh run something else, or nothing."""
        before = self._edges, self.operations
        try:
            yield
        finally:
            self._edges, self.operations = before

    @property
    def log(self) -> str:
        return self._log.hexdigest()

    def send(self, value: Tensor, to: int) -> None:
        """What is sent is the value as it is now, whatever is written to it later."""
        data = _bytes(value).clone()
        if self.on_send is not None:
            self.on_send()
        self.messages += 1
        self.bytes += data.numel()
        with self._now():
            self._sending.append((dist.isend(data, self._global(to), group=self.group), data))
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()

    def expect(self, like: Tensor, source: int) -> Callable[[], Tensor]:
        """Ask for what `source` sends next that nobody has asked for. Called, what this gives waits for it and gives a real
        tensor with the shape, strides and dtype of `like`."""
        facts = empty(like.shape, like.stride(), like.dtype)
        data = torch.empty(like.numel() * like.element_size(), dtype=torch.uint8, device=self.device)
        with self._now():
            work: Any = dist.irecv(data, self._global(source), group=self.group)
        number = self._expected = self._expected + 1
        self._coming[number] = work, data

        def take() -> Tensor:
            work.wait()
            self._coming.pop(number, None)
            return _shaped(data, facts)

        return take

    def receive(self, like: Tensor, source: int) -> Tensor:
        """What `source` sends next, as `expect` says."""
        return self.expect(like, source)()

    def broadcast(self, value: Tensor, source: int) -> Tensor:
        """`value` of the rank `source`, on all ranks. Elsewhere `value` gives shape, strides and dtype."""
        size = value.numel() * value.element_size()
        data = torch.empty(size, dtype=torch.uint8, device=self.device)
        if self.rank == source:
            data = _bytes(value).clone()
            self.bytes += size
        self.broadcasts += 1
        if size:
            with self._now():
                dist.broadcast(data, self._global(source), group=self.group)
        return _shaped(data, value)

    def tell(self, thing: Any, source: int) -> Any:
        """A small Python object of the rank `source`, on all ranks."""
        box = [thing]
        with self._now():
            dist.broadcast_object_list(box, self._global(source), group=self.group)
        return box[0]

    def decide(self, thing: Any) -> Any:
        """A small object of the first of all ranks in lockstep, on all of them."""
        box = [thing]
        first = 0 if self.everyone is None else dist.get_global_rank(self.everyone, 0)
        dist.broadcast_object_list(box, first, group=self.everyone)
        return box[0]

    @property
    def place(self) -> int:
        """This rank's place among all ranks in lockstep."""
        return dist.get_rank(self.everyone)

    @property
    def in_mesh(self) -> bool:
        """Whether there are several such groups, each with a model of its own."""
        return self.everyone is not self.group

    def gather(self, thing: Any) -> list[Any]:
        """Every rank's object, by rank, on all ranks."""
        return self._gather(thing, self.group)

    def everywhere(self, thing: Any) -> list[Any]:
        """The object of every rank in lockstep, on all of them."""
        return self._gather(thing, self.everyone)

    def _gather(self, thing: Any, group: dist.ProcessGroup | None) -> list[Any]:
        things: list[Any] = [None] * dist.get_world_size(group)
        with self._now():
            dist.all_gather_object(things, thing, group=group)
        return things

    def flush(self) -> None:
        """Wait until everything sent has left, and what nobody has taken has come."""
        for work, _ in (*self._sending, *self._coming.values()):
            work.wait()
        self._sending.clear()
        self._coming.clear()

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def _bytes(value: Tensor) -> Tensor:
    return value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _shaped(data: Tensor, like: Tensor) -> Tensor:
    whole = data.view(like.dtype).view(like.shape)
    if like.is_contiguous():
        return whole
    strided = empty(like.shape, like.stride(), like.dtype, data.device)
    return whole if strided.stride() == whole.stride() else strided.copy_(whole)


class _Open:
    channel: Channel | None = None


def connect(channel: Channel | None) -> None:
    """Make this the channel of the cell that runs now. Autograd functions reach it by `channel()`."""
    _Open.channel = channel


def channel() -> Channel:
    if _Open.channel is None:
        raise RuntimeError("no parallel model cell is running")
    return _Open.channel


def connected() -> bool:
    return _Open.channel is not None


def agree(values: Sequence[Any]) -> bool:
    """Whether all ranks hold the same object."""
    return all(value == values[0] for value in values)
