"""What a rank keeps and sends under `--how tensor`: training steps of a copy by the mode's own code, with ranks that are not there.

It runs twice: once where rank 0 holds its part of the columns, once where it holds all of them. What differs is shared out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nbpar.parallel.model.layers import chain
from nbpar.parallel.model.operands import tensors
from nbpar.parallel.tensor.above import lists_may_hold_sharded
from nbpar.parallel.tensor.layers import in_parallel
from nbpar.parallel.tensor.ranks import SUM, Ranks, opened
from nbpar.parallel.tensor.sharded import Sharded
from nbpar.parallel.tensor.split import Split
from nbpar.plan.columns import columns_of
from nbpar.plan.figures import Columns, Shared
from nbpar.plan.mesh import shares

Subject = tuple[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]  # a model, and how it is called


def rehearse(model: nn.Module, make: Callable[[], Subject], sizes: Sequence[int]) -> dict[int, Columns]:
    """By number of ranks. make: gives a new copy of the model, and of its arguments."""
    found: dict[int, Columns] = {}
    seen: dict[tuple[bool, ...], tuple[_Rehearsal, Shared]] = {}
    for size in sizes:
        narrow = tuple(count < size for value in model.parameters() for count in value.shape)  # and so split in another way
        if narrow not in seen:
            mine, whole = _Rehearsal(make(), Imagined(size)), _Rehearsal(make(), Imagined(size, whole=True))
            seen[narrow] = mine, _kept(mine.run(), whole.run())
        mine, kept = seen[narrow]
        parts = {name: (dim, shares(sum(columns), size)) for name, (dim, columns) in mine.parts.items()}
        found[size] = Columns(columns_of(mine.layers, size, parts), kept, mine.ranks.sent, mine.given)
    return found


class Imagined(Ranks):
    """Rank 0 of ranks that are not there. whole: it holds all columns."""

    def __init__(self, size: int, *, whole: bool = False) -> None:
        self.rank, self.size, self.whole = 0, size, whole
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self._gathered: Counter[int] = Counter()
        self._reduced = 0

    @property
    def sent(self) -> Shared:
        return Shared(self._reduced, tuple(self._gathered.items()))

    def sizes(self, count: int) -> tuple[int, ...]:
        return (count, *(0,) * (self.size - 1)) if self.whole else super().sizes(count)

    def gather(self, part: Tensor, dim: int, count: int) -> Tensor:
        """Its own columns, over and over."""
        whole = part.index_select(dim, torch.arange(count, device=part.device) % part.shape[dim])
        self._gathered[count] += whole.nbytes
        return whole

    def all_reduce(self, value: Tensor, op: dist.ReduceOp.RedOpType = SUM) -> Tensor:
        self._reduced += value.nbytes
        return value.clone(memory_format=torch.contiguous_format)


class _Rehearsal:
    """given: bytes of the arguments that a step keeps."""

    def __init__(self, subject: Subject, ranks: Imagined) -> None:
        self.model, self.call = subject
        self.ranks = ranks
        self.layers = chain({"": self.model})
        self.given = 0
        with opened(ranks):
            split = Split({})
            split.model("", self.model)
            self.parts = split.parts()

    def run(self) -> list[Tensor]:
        """What the second of two steps keeps, in order. The first shows which outputs have to be whole."""
        with opened(self.ranks), in_parallel(), lists_may_hold_sharded(), torch.enable_grad():
            self._step()
            self.ranks.begin()
            return self._step()

    def _step(self) -> list[Tensor]:
        saved: list[Tensor] = []

        def pack(value: Tensor) -> Tensor:
            saved.append(value)
            return value

        arguments, keywords = self.call
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            result = self.model(*arguments, **keywords)
        wholes = [leaf.reshape(-1).sum() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
        there = {_memory(here) for value in (*self.model.parameters(), *self.model.buffers()) for here in _here(value)}
        given = {_memory(value): value.untyped_storage().nbytes() for value in tensors(self.call)}
        found = [here for value in saved for here in _here(value) if _memory(here) not in there]
        self.given = sum(given[memory] for memory in {_memory(value) for value in found} if memory in given)
        torch.stack(wholes).sum().backward()
        return [value for value in found if _memory(value) not in given]


def _here(value: Tensor) -> list[Tensor]:
    """What a rank has of it: its part, and the whole where that was gathered and stays."""
    if not isinstance(value, Sharded):
        return [value]
    return [each for each in (value._shards.part, value._shards.whole) if each is not None]


def _kept(mine: Sequence[Tensor], whole: Sequence[Tensor]) -> Shared:
    """Of the same tensors on a rank that has its part of the columns, and on one that has all."""
    alike, split = 0, Counter[int]()
    for here, there in {_memory(here): (here, there) for here, there in zip(mine, whole, strict=True)}.values():
        columns = [count for count, part in zip(there.shape, here.shape, strict=True) if count != part]
        if columns:
            split[columns[0]] += there.untyped_storage().nbytes()
        else:
            alike += here.untyped_storage().nbytes()
    return Shared(alike, tuple(split.items()))


def _memory(value: Tensor) -> int:
    return value.untyped_storage()._cdata
