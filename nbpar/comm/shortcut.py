"""`dist.all_reduce` without torch's preparations: for a small tensor they take longer than MPI does, and mostly none matters."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.compiler import is_compiling
from torch.distributed import distributed_c10d as c10d

from .buffers import NUMBERS, PLAIN
from .collectives import MPIGroup
from .group import AtOnce

HASHES = {op: hash(dist.ReduceOp(op)) for op in (dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN, dist.ReduceOp.MAX)}
torchs = c10d.all_reduce
overridden, dispatched = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack  # modes under way


@functools.wraps(torchs)
def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
    if async_op or is_compiling() or not plain(tensor) or overridden() or dispatched() or c10d._world.pg_coalesce_state:
        return torchs(tensor, op, group, async_op)
    members = c10d._world.default_pg if group is None else group
    number = HASHES.get(op)
    if number is None or type(members) is not MPIGroup:
        return torchs(tensor, op, group, async_op)
    members.all_reduce_plain(tensor, PLAIN[number], number, AtOnce).wait()
    return None


def plain(tensor: Any) -> bool:
    """Whether MPI can work on this tensor's memory as it is, and nothing else looks at what is done to it."""
    if type(tensor) is not Tensor or tensor.dtype not in NUMBERS or tensor.is_complex():
        return False
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad


def install(function: Any = all_reduce) -> None:
    module: Any
    for module in (dist, c10d):
        module.all_reduce = function


def remove() -> None:
    install(torchs)
