"""The collectives of split calls: plain torch.distributed, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbpar.comm import all_reduce_

MEETING = 1  # the word of a rank that is inside a call; the end of a call has larger ones


HEAD, ROOM = 3, 509  # numbers in an agreement: what is said, and room for more

# What Python reads inside a call is watched (context.read); what this package reads there is not.
to_list = torch._C.TensorBase.tolist
gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Ranks:
    """The default group. counts: collectives and bytes by name, for the report."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.counts: Counter[str] = Counter()

    def _count(self, name: str, tensor: Tensor) -> None:
        self.counts[name] += 1
        self.counts["bytes"] += tensor.numel() * tensor.element_size()

    def sizes(self, rows: int) -> tuple[int, ...]:
        """How many of the rows each rank has."""
        return tuple(rows // self.size + (rank < rows % self.size) for rank in range(self.size))

    def all_reduce(self, tensor: Tensor, name: str = "all-reduce") -> Tensor:
        """The sum over ranks, in place. The tensor must be contiguous."""
        self._count(name, tensor)
        return all_reduce_(tensor)

    def through_root(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place, made on rank 0 and sent from there."""
        self._count("gradients", tensor)
        dist.reduce(tensor, 0)
        dist.broadcast(tensor, 0)
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
        gather_single(out, rows)
        if min(sizes) != most:
            out = torch.cat([out[rank * most : rank * most + count] for rank, count in enumerate(sizes)])
        return out.bool() if as_bytes else out

    def objects(self, value: Any) -> list[Any]:
        """Every rank's small value."""
        self.counts["agreement"] += 1
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(
        self, ok: bool, first: int = MEETING, second: int = 0, payload: Tensor | None = None
    ) -> tuple[bool, list[bool], Tensor | None]:
        """Whether all ranks are ok, which of two words (below 2**53) are the same on all of them, and all ranks' payloads.

        One message of one size, whatever it says, so that ranks at different places still understand each other.
        payload: float64, of at most ROOM numbers; (N, numbers) comes back.
        """
        self.counts["agreement" if payload is None else "inside"] += 1
        said = torch.zeros(HEAD + ROOM, dtype=torch.float64)
        said[:HEAD] = torch.tensor((float(ok), float(first), float(second)), dtype=torch.float64)
        if payload is not None:
            said[HEAD : HEAD + payload.numel()] = payload
        every = said.new_empty(self.size * said.numel())
        gather_single(every, said)
        rows = every.view(self.size, -1)
        oks, *words = zip(*to_list(rows[:, :HEAD]), strict=True)
        same = [len(set(word)) == 1 for word in words]
        return all(oks), same, None if payload is None else rows[:, HEAD : HEAD + payload.numel()]

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest over ranks of each value."""
        self.counts["agreement"] += 1
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return to_list(tensor)
