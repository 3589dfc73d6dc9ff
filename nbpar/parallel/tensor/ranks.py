"""The ranks that share each layer, and what they say to each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from nbpar.parallel.model.channel import Channel

SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX
gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Ranks:
    """One process group, by default all ranks. everyone: see `Channel`. gathers, reductions, bytes: counts, of this rank."""

    def __init__(self, group: dist.ProcessGroup | None = None, everyone: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.channel = Channel(group, everyone=everyone)
        self.rank, self.size = self.channel.rank, self.channel.size
        self.gathers = self.reductions = self.bytes = 0

    def sizes(self, count: int) -> tuple[int, ...]:
        """How many of `count` columns each rank holds."""
        return tuple(count // self.size + (rank < count % self.size) for rank in range(self.size))

    def bounds(self, count: int) -> tuple[int, int]:
        """This rank's first column, and the one after its last."""
        ends = (0, *accumulate(self.sizes(count)))
        return ends[self.rank], ends[self.rank + 1]

    def cut(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's shard, a view."""
        begin, end = self.bounds(whole.shape[dim])
        return whole.narrow(dim, begin, end - begin)

    def gather(self, part: Tensor, dim: int, count: int) -> Tensor:
        """The ranks' shards, `count` columns along `dim`, as one tensor: contiguous, or channels-last if the shard is."""
        part = part.resolve_conj().resolve_neg()
        sizes = self.sizes(count)
        rest = [size for k, size in enumerate(part.shape) if k != dim % part.dim()]
        widest = max(sizes) * prod(rest) * part.element_size()
        mine = part.contiguous().view(-1).view(torch.uint8)
        if mine.numel() < widest:
            mine = torch.cat([mine, mine.new_zeros(widest - mine.numel())])
        every = mine.new_empty(widest * self.size)
        self.gathers += 1
        self.bytes += part.nbytes
        if widest:
            gather_single(every, mine, group=self.group)
        shards = []
        for rank, size in enumerate(sizes):
            shape = list(part.shape)
            shape[dim] = size
            data = every[rank * widest : rank * widest + prod(shape) * part.element_size()]
            shards.append(data.view(part.dtype).view(shape))
        return torch.cat(shards, dim).contiguous(memory_format=format_of(part))

    def all_reduce(self, value: Tensor, op: dist.ReduceOp.RedOpType = SUM) -> Tensor:
        """Over all ranks, in a new tensor."""
        value = value.clone(memory_format=torch.contiguous_format)
        self.reductions += 1
        self.bytes += value.nbytes
        dist.all_reduce(value, op, group=self.group)
        return value


def format_of(value: Tensor) -> torch.memory_format:
    for format, dim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if value.dim() == dim and not value.is_contiguous() and value.is_contiguous(memory_format=format):
            return format
    return torch.contiguous_format


class _Open:
    ranks: Ranks | None = None


@contextmanager
def opened(ranks: Ranks) -> Iterator[None]:
    """While it lasts, these are the ranks that `ranks()` gives."""
    before, _Open.ranks = _Open.ranks, ranks
    try:
        yield
    finally:
        _Open.ranks = before


def ranks() -> Ranks:
    if _Open.ranks is None:
        raise RuntimeError("a tensor that is split over ranks was used outside of the cell that split it")
    return _Open.ranks
