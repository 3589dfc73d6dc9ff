"""The collectives of split calls: plain torch.distributed, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbpar.comm import sum_over
from nbpar.parallel.ways import Functions

MEETING = 1  # the word of a rank that is inside a call; the end of a call has larger ones


HEAD, ROOM = 3, 509  # numbers in an agreement: what is said, and room for more

# What Python reads inside a call is watched (context.read); what this package reads there is not.
to_list = torch._C.TensorBase.tolist
gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Ranks:
    """The ranks that share the rows: all of torch.distributed's, or a group of them.

    Values come together within the group; what all ranks must decide alike (`objects`, `agree`, `largest`) within the world.
    column: which of the world's groups this is. counts: collectives and bytes by name, for the report.
    """

    column = 0
    doubles = True  # whether weights can be shown in float64
    all_here = True  # whether each rank holds all weights, and sees what writes to them

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.root = dist.get_global_rank(group, 0) if group is not None else 0
        self.counts: Counter[str] = Counter()

    @property
    def kind(self) -> Any:
        """What is found out by trial holds for ranks of the same kind."""
        return self.size

    def _count(self, name: str, tensor: Tensor) -> None:
        self.counts[name] += 1
        self.counts["bytes"] += tensor.numel() * tensor.element_size()

    def parts(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What this rank holds of these tensors."""
        return tensors

    def total(self, tensor: Tensor) -> float:
        """The sum of its values, the same for the same values."""
        return float(tensor.detach().sum())

    def homes(self, values: Sequence[Any]) -> Any:
        """Where these values are, if not on every rank: what comes together must be in the same places."""

    def alone(self, run: Callable[[], Any], *, watched: bool) -> tuple[Any, int | None]:
        """Run what may fail on this rank's rows, and not on others'. Gives its result and, if watched, the way that it goes."""
        if not watched:
            return run(), None
        with self.watch() as way:
            result = run()
        return result, hash(tuple(way))

    @contextmanager
    def watch(self) -> Iterator[list[Hashable]]:
        """The way that a program goes inside, step by step."""
        with Functions() as functions:
            yield functions.steps

    def together(self, run: Callable[[], Any]) -> Any:
        """Run what is the same on all ranks, and fails on all of them or on none."""
        return run()

    def sizes(self, rows: int) -> tuple[int, ...]:
        """How many of the rows each rank has."""
        return tuple(rows // self.size + (rank < rows % self.size) for rank in range(self.size))

    def all_reduce(self, tensor: Tensor, name: str = "all-reduce") -> Tensor:
        """The sum over ranks, in place. The tensor must be contiguous."""
        self._count(name, tensor)
        return sum_over(self.group or dist.group.WORLD, tensor)

    def through_root(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place, made on the first and sent from there."""
        self._count("gradients", tensor)
        dist.reduce(tensor, self.root, group=self.group)
        dist.broadcast(tensor, self.root, group=self.group)
        return tensor

    def from_root(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, in place."""
        self._count("weights", tensor)
        dist.broadcast(tensor, self.root, group=self.group)
        return tensor

    def gather(self, rows: Tensor, sizes: Sequence[int], name: str = "gather") -> Tensor:
        """The ranks' rows (n, …), in order: (sum of sizes, …). Not a view of anything."""
        as_bytes = rows.dtype == torch.bool
        rows = (rows.to(torch.uint8) if as_bytes else rows).contiguous()
        most = max(sizes)
        if rows.shape[0] != most:
            padded = rows.new_zeros((most, *rows.shape[1:]))
            padded[: rows.shape[0]] = rows
            rows = padded
        self._count(name, rows)
        out = rows.new_empty((most * self.size, *rows.shape[1:]))
        gather_single(out, rows, group=self.group)
        if min(sizes) != most:
            out = torch.cat([out[rank * most : rank * most + count] for rank, count in enumerate(sizes)])
        return out.bool() if as_bytes else out

    def objects(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """The small value of every rank of the world, or of a group."""
        self.counts["agreement"] += 1
        values: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(values, value, group=group)
        return values

    def agree(
        self, ok: bool, first: int = MEETING, second: int = 0, payload: Tensor | None = None
    ) -> tuple[bool, list[bool], Tensor | None]:
        """Whether all ranks are ok, which of two words (below 2**53) are the same on all of them, and all ranks' payloads.

        One message of one size, whatever it says, so that ranks at different places still understand each other.
        payload: float64, of at most ROOM numbers; (N, numbers) comes back. With one, only the group is asked.
        """
        self.counts["agreement" if payload is None else "inside"] += 1
        said = torch.zeros(HEAD + ROOM, dtype=torch.float64)
        said[:HEAD] = torch.tensor((float(ok), float(first), float(second)), dtype=torch.float64)
        if payload is not None:
            said[HEAD : HEAD + payload.numel()] = payload
        group = None if payload is None else self.group
        every = said.new_empty(dist.get_world_size(group) * said.numel())
        gather_single(every, said, group=group)
        rows = every.view(-1, said.numel())
        oks, *words = zip(*to_list(rows[:, :HEAD]), strict=True)
        same = [len(set(word)) == 1 for word in words]
        return all(oks), same, None if payload is None else rows[:, HEAD : HEAD + payload.numel()]

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest over the world of each value."""
        self.counts["agreement"] += 1
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return to_list(tensor)
