"""Tensors as MPI buffers: which memory, which datatype, and what has to be copied first.

MPI sees contiguous host memory. A tensor that is elsewhere (CUDA) or strided is staged: copied to host memory before the
operation, and back when it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

ReduceOp: Any = dist.ReduceOp
Buffer = list[Any]
from_address = MPI.memory.fromaddress

NUMBERS: dict[torch.dtype, MPI.Datatype] = {
    torch.float32: MPI.FLOAT,
    torch.float64: MPI.DOUBLE,
    torch.int8: MPI.INT8_T,
    torch.int16: MPI.INT16_T,
    torch.int32: MPI.INT32_T,
    torch.int64: MPI.INT64_T,
    torch.uint8: MPI.UINT8_T,
    torch.uint16: MPI.UINT16_T,
    torch.uint32: MPI.UINT32_T,
    torch.uint64: MPI.UINT64_T,
    torch.complex64: MPI.C_FLOAT_COMPLEX,
    torch.complex128: MPI.C_DOUBLE_COMPLEX,
}
REAL = frozenset(dtype for dtype in NUMBERS if not dtype.is_complex)
# MPI knows no half precision: such tensors are reduced in float32 and rounded once.
WIDER: dict[torch.dtype, torch.dtype] = {torch.float16: torch.float32, torch.bfloat16: torch.float32}

OPS: dict[Any, MPI.Op] = {
    ReduceOp(ReduceOp.SUM): MPI.SUM,
    ReduceOp(ReduceOp.AVG): MPI.SUM,
    ReduceOp(ReduceOp.PRODUCT): MPI.PROD,
    ReduceOp(ReduceOp.MIN): MPI.MIN,
    ReduceOp(ReduceOp.MAX): MPI.MAX,
    ReduceOp(ReduceOp.BAND): MPI.BAND,
    ReduceOp(ReduceOp.BOR): MPI.BOR,
    ReduceOp(ReduceOp.BXOR): MPI.BXOR,
}
# By hash, which is the operation's number: comparing two ReduceOps takes longer than the rest of a small all-reduce.
MPI_OPS = {hash(op): mpi for op, mpi in OPS.items()}
PLAIN = {hash(op): mpi for op, mpi in OPS.items() if op != ReduceOp.AVG}
assert len(MPI_OPS) == len(OPS)
# On truth values, stored as 0 and 1 in a byte, a sum is "any" and a product "all".
TRUTH: dict[Any, MPI.Op] = {
    ReduceOp(ReduceOp.SUM): MPI.MAX,
    ReduceOp(ReduceOp.MAX): MPI.MAX,
    ReduceOp(ReduceOp.BOR): MPI.MAX,
    ReduceOp(ReduceOp.PRODUCT): MPI.MIN,
    ReduceOp(ReduceOp.MIN): MPI.MIN,
    ReduceOp(ReduceOp.BAND): MPI.MIN,
    ReduceOp(ReduceOp.BXOR): MPI.BXOR,
}
WHOLE_NUMBERS_ONLY = {ReduceOp(ReduceOp.BAND), ReduceOp(ReduceOp.BOR), ReduceOp(ReduceOp.BXOR)}
ORDERED_ONLY = {ReduceOp(ReduceOp.MIN), ReduceOp(ReduceOp.MAX)}


def raw(tensor: Tensor) -> Buffer:
    """The bytes of a contiguous host tensor of any shape."""
    return [from_address(tensor.data_ptr(), tensor.nbytes), MPI.BYTE]


def raw_parts(tensor: Tensor, counts: Sequence[int]) -> Buffer:
    """The bytes of a contiguous host tensor of any shape, cut into parts of `counts` bytes."""
    return [from_address(tensor.data_ptr(), tensor.nbytes), list(counts), MPI.BYTE]


def numbers(tensor: Tensor) -> Buffer:
    """The elements of a contiguous host tensor of any shape that MPI can reduce."""
    return [from_address(tensor.data_ptr(), tensor.nbytes), NUMBERS[tensor.dtype]]


def on_host(tensor: Tensor) -> Tensor:
    """The tensor itself if MPI can read it as it is, else a contiguous copy of its shape in host memory."""
    if tensor.is_cpu and tensor.is_contiguous():
        return tensor
    return tensor.detach().cpu().contiguous()


def room_for(tensor: Tensor) -> Tensor:
    """The tensor itself if MPI can write to it, else contiguous host memory of its shape."""
    if tensor.is_cpu and tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def put_back(tensor: Tensor, staged: Tensor) -> None:
    """Copy what arrived in `staged`, of any shape, to the tensor it stands for, of as many elements."""
    if staged is not tensor:
        tensor.detach().copy_(staged.view(tensor.shape))


def apart(source: Tensor, target: Tensor) -> Tensor:
    """A contiguous source of any shape, copied if it shares memory with the target: MPI forbids that."""
    start, place = source.data_ptr(), target.data_ptr()
    return source.clone() if start < place + target.nbytes and place < start + source.nbytes else source


def flat(parts: Sequence[Tensor]) -> Tensor:
    """The parts' elements one after another, in new host memory of shape (all,)."""
    return torch.cat([part.detach().cpu().reshape(-1) for part in parts])


def empty_for(parts: Sequence[Tensor]) -> Tensor:
    """Host memory of shape (all,) for the parts' elements one after another."""
    return torch.empty(sum(part.numel() for part in parts), dtype=parts[0].dtype)


def split(target: Tensor, parts: Sequence[Tensor]) -> None:
    """Copy what arrived in `target`, of shape (all,), to the parts, of any shapes."""
    for part, arrived in zip(parts, target.split([part.numel() for part in parts]), strict=True):
        part.detach().copy_(arrived.view(part.shape))


class Reduction:
    """How one reduction is brought to MPI: the datatype it is computed in, MPI's operation, what follows."""

    def __init__(self, op: Any, dtype: torch.dtype, size: int) -> None:
        self.op = op
        self.factor = getattr(op, "factor", None) if op == ReduceOp.PREMUL_SUM else None
        self.divide_by = size if op == ReduceOp.AVG else 1
        self.truth = dtype == torch.bool
        self.dtype = torch.uint8 if self.truth else WIDER.get(dtype, dtype)
        ops = TRUTH if self.truth else OPS
        mpi = ops.get(ReduceOp(ReduceOp.SUM) if self.factor is not None and not self.truth else op)
        if mpi is None or self.dtype not in NUMBERS:
            raise TypeError(f"backend mpi cannot reduce {dtype} with {op.op.name}; convert the tensor to float32 first")
        if op in WHOLE_NUMBERS_ONLY and (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"{op.op.name} is defined on integers and truth values, not on {dtype}")
        if op in ORDERED_ONLY and dtype.is_complex:
            raise TypeError(f"{op.op.name} is not defined on {dtype}: complex numbers have no order")
        self.mpi = mpi

    def stage(self, tensor: Tensor) -> Tensor:
        """What MPI reads: the tensor itself if that will do, else one of its shape."""
        if self.factor is not None:
            tensor = tensor.detach() * self.factor
        if tensor.dtype == self.dtype:
            return on_host(tensor)
        if self.truth:
            return on_host(tensor).view(torch.uint8)
        return on_host(tensor.detach().to(self.dtype))

    def room(self, tensor: Tensor) -> Tensor:
        """Where MPI writes the result for `tensor`: of its shape."""
        if tensor.dtype == self.dtype:
            return room_for(tensor)
        if self.truth:
            return room_for(tensor).view(torch.uint8)
        return torch.empty(tensor.shape, dtype=self.dtype)

    def finish(self, tensor: Tensor, staged: Tensor) -> None:
        """Divide for an average, and bring the result to `tensor`, of the same shape."""
        if self.divide_by != 1:
            exact = staged.is_floating_point() or staged.is_complex()
            staged.detach().div_(self.divide_by, rounding_mode=None if exact else "trunc")
        if self.truth:
            staged = staged.view(torch.bool)
            if staged.data_ptr() == tensor.data_ptr():
                return
        put_back(tensor, staged)
