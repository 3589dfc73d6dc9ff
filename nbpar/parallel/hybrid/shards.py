"""The collectives of mode `data` where each layer is split over a row: of the shards, where that is the same as of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.tensor.sharded import Sharded, layout, whole_of
from nbpar.plan.mesh import Mesh


class ShardColumns(Ranks):
    """The ranks that hold the same shards, one for each replica. Every rank has, or can gather, the whole of every value."""

    all_here = False
    doubles = False  # a tensor that is split cannot change its type while a graph holds it

    def __init__(self, mesh: Mesh, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self.mesh = mesh
        _, self.column = mesh.place(dist.get_rank())

    @property
    def kind(self) -> Any:
        return self.mesh, "tensor"

    def parts(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_part(tensor) for tensor in tensors]

    def total(self, tensor: Tensor) -> float:
        """Of the whole: a sum of shards is rounded by the way that it is split, which a call may change."""
        return super().total(whole_of(tensor.detach()))

    def all_reduce(self, tensor: Tensor, name: str = "all-reduce") -> Tensor:
        if not isinstance(tensor, Sharded):
            return super().all_reduce(tensor, name)
        whole = super().all_reduce(whole_of(tensor).clone(), name)
        return tensor.copy_(whole)

    def gather(self, rows: Tensor, sizes: Sequence[int], name: str = "gather") -> Tensor:
        return super().gather(whole_of(rows), sizes, name)


def _part(tensor: Tensor) -> Tensor:
    shards = layout(tensor)
    if shards is None or shards.part is None:
        return tensor
    shards.wrote_part()
    return shards.part
