"""The collectives of mode `data` in a mesh: where the values are. Elsewhere they are a matter of shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.model.dispatch import Dispatch
from nbpar.parallel.model.failures import together, worked_around
from nbpar.parallel.model.home import home, like
from nbpar.plan.mesh import Mesh


class Columns(Ranks):
    """The ranks that hold the same stage, one for each replica. A value of another stage is meta on all of them."""

    all_here = False
    dispatch: Dispatch

    def __init__(self, mesh: Mesh, row: dist.ProcessGroup, column: dist.ProcessGroup) -> None:
        super().__init__(column)
        self.mesh, self.row = mesh, row
        _, self.column = mesh.place(dist.get_rank())

    @property
    def kind(self) -> Any:
        return self.mesh

    def homes(self, values: Sequence[Any]) -> Any:
        return [home(value) for value in values if isinstance(value, Tensor)]

    def alone(self, run: Callable[[], Any], *, watched: bool) -> tuple[Any, int | None]:
        if not watched:  # a look: what is given is read then, by all of a row or by none
            return together(self.dispatch, run, self.row), None
        with worked_around(self.dispatch):
            return super().alone(run, watched=watched)

    @contextmanager
    def watch(self) -> Iterator[list[Hashable]]:
        with self.dispatch.recorded() as way:
            yield way

    def together(self, run: Callable[[], Any]) -> Any:
        return together(self.dispatch, run)

    def all_reduce(self, tensor: Tensor, name: str = "all-reduce") -> Tensor:
        with torch._C.DisableTorchFunction():
            return tensor if tensor.is_meta else super().all_reduce(tensor, name)

    def through_root(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return tensor if tensor.is_meta else super().through_root(tensor)

    def gather(self, rows: Tensor, sizes: Sequence[int], name: str = "gather") -> Tensor:
        with torch._C.DisableTorchFunction():
            whole = rows.new_empty((sum(sizes), *rows.shape[1:])) if rows.is_meta else super().gather(rows, sizes, name)
            return like(whole, rows)
