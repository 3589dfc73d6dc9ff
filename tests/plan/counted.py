"""What ranks really keep and send in a training step, counted apart from what `nbpar.plan` predicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nbpar.parallel.model.channel import Channel
from nbpar.parallel.patch import patched
from nbpar.parallel.tensor.ranks import Ranks
from nbpar.parallel.tensor.sharded import Sharded, Shards


def here(value: Tensor) -> Tensor:
    """What this rank has of it."""
    return value._shards.data if isinstance(value, Sharded) else value


class Saved:
    """Bytes of the memories that autograd keeps for the backward pass on this rank, but those that are there anyway."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        with torch._C.DisableTorchFunction():  # the mode answers for tensors that live elsewhere
            self.there = {_place(here(value)) for value in there}
        self.bytes: dict[int, int] = {}
        self.shards: list[Shards] = []  # of which the whole may be gathered later, and stay

    def pack(self, value: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            self._count(here(value))
            if isinstance(value, Sharded):
                self.shards.append(value._shards)
        return value

    def total(self) -> int:
        """When the forward pass has ended."""
        for shards in self.shards:
            if shards.whole is not None:
                self._count(shards.whole)
        self.shards.clear()
        return sum(self.bytes.values())

    def _count(self, value: Tensor) -> None:
        if not value.is_meta and _place(value) not in self.there:
            self.bytes[_place(value)] = value.untyped_storage().nbytes()


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


@contextmanager
def saving(there: Iterable[Tensor]) -> Iterator[Saved]:
    """A function of its own: one that names these hooks makes submodules run operation by operation."""
    saved = Saved(there)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda value: value):
        yield saved


class Sent:
    """Bytes that this rank gives to others of its replica."""

    bytes = 0

    def note(self, method: str) -> object:
        def make(original: object) -> object:
            def noted(link: object, value: Tensor, *args: object) -> object:
                with torch._C.DisableTorchFunction():
                    self.bytes += value.numel() * value.element_size()
                return original(link, value, *args)

            return noted

        return make


@contextmanager
def sending() -> Iterator[Sent]:
    """Counts values that go from stage to stage, and collectives between shards."""
    sent = Sent()
    with patched(Channel, "send", sent.note("send")), patched(Ranks, "gather", sent.note("gather")):
        with patched(Ranks, "all_reduce", sent.note("all_reduce")):
            yield sent
