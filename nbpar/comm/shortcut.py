"""`dist.all_reduce` without torch's preparations: for a small tensor they take longer than MPI does, and mostly none matters."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.compiler import is_compiling
from torch.distributed import distributed_c10d as c10d

from .buffers import PLAIN, REAL
from .collectives import MPIGroup
from .group import AtOnce

SUM = dist.ReduceOp.SUM
HASHES = {op: hash(dist.ReduceOp(op)) for op in (SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN, dist.ReduceOp.MAX)}
OF_SUM = HASHES[SUM]  # known by identity: a look into the table takes 0.2 µs
torchs = c10d.all_reduce
overridden, dispatched = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack  # modes under way


@functools.wraps(torchs)
def all_reduce(tensor: Tensor, op: Any = SUM, group: Any = None, async_op: bool = False) -> Any:
    world = c10d._world
    members: Any = world.default_pg if group is None else group
    number: Any = OF_SUM if op is SUM else HASHES.get(op)
    simple = number is not None and type(members) is MPIGroup and plain(tensor) and not async_op
    if not simple or is_compiling() or overridden() or dispatched() or world.pg_coalesce_state:
        return torchs(tensor, op, group, async_op)
    members.all_reduce_plain(tensor, PLAIN[number], number, AtOnce).wait()
    return None


def plain(tensor: Any) -> bool:
    """Whether MPI can work on this tensor's memory as it is, and nothing else looks at what is done to it."""
    return type(tensor) is Tensor and tensor.dtype in REAL and tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad


def install(function: Any = all_reduce) -> None:
    module: Any
    for module in (dist, c10d):
        module.all_reduce = function


def remove() -> None:
    install(torchs)
