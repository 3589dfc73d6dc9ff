"""A torch.distributed process group over an MPI communicator.

Every operation is a non-blocking MPI call whose requests a Work polls. In the methods, names and arguments are torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor
from torch.distributed import ReduceOp

from .buffers import (
    NUMBERS,
    PLAIN,
    Reduction,
    numbers,
    on_host,
    overlap,
    put_back,
    raw,
    raw_parts,
    room_for,
)
from .state import state
from .trace import Record, trace
from .waiting import check
from .work import MPIWork

IN_PLACE = MPI.IN_PLACE


class MPIGroup(dist.ProcessGroup):  # type: ignore[misc]
    """comm: the communicator, used for nothing else. live: the works that are not done, with their buffers."""

    def __init__(self, comm: MPI.Comm) -> None:
        super().__init__(comm.rank, comm.size)
        self.comm = comm
        self.live: set[MPIWork] = set()
        self._name = self._description = ""
        self._size = comm.size
        groups.add(self)

    @classmethod
    def create(cls, ranks: Sequence[int]) -> MPIGroup:
        """A group of these ranks of the default group; of the whole world if there are none. Called by its members."""
        from .join import communicator

        return cls(communicator(ranks))

    def shutdown(self) -> None:
        """Free the communicator, unless operations on it are under way; then the next `renew` does."""
        if not self.live:
            groups.discard(self)
            self.comm.Free()

    abort = shutdown

    # Names: torch asks C++ for them, C++ asks here.

    def getBackendName(self) -> str:
        return "mpi"

    name = getBackendName

    def getRank(self) -> int:
        return self.comm.rank

    def getSize(self) -> int:
        return self._size

    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name

    def setGroupDesc(self, description: str) -> None:
        self._description = description

    def getGroupDesc(self) -> str:
        return self._description

    # Starting an operation.

    def _begin(self, operation: str, tensor: Tensor, nbytes: int | None = None) -> Record:
        if state.reason is not None:
            check()
        nbytes = tensor.nbytes if nbytes is None else nbytes
        return trace.begin(self._name, operation, tensor.shape, tensor.dtype, nbytes)

    def _combine(self, works: Sequence[MPIWork]) -> MPIWork:
        """One work for several that run at the same time."""
        if len(works) == 1:
            return works[0]
        return Together(self, works)

    # Reductions.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> MPIWork:
        return self._combine([self._allreduce(tensor, _op(opts)) for tensor in tensors])

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> MPIWork:
        return self._combine([self._allreduce(tensor, _op(opts)) for tensor in tensors])

    def _allreduce(self, tensor: Tensor, op: ReduceOp) -> MPIWork:
        record = self._begin("all_reduce", tensor)
        mpi = PLAIN.get(op)
        if mpi is not None and tensor.dtype in NUMBERS and tensor.is_cpu and tensor.is_contiguous():
            request = self.comm.Iallreduce(IN_PLACE, numbers(tensor), mpi)
            return MPIWork(self, record, [request], [tensor], None, tensor)
        reduction = Reduction(op, tensor.dtype, self._size)
        staged = reduction.stage(tensor)
        request = self.comm.Iallreduce(IN_PLACE, numbers(staged), reduction.mpi)
        return MPIWork(self, record, [request], [tensor], lambda: reduction.finish(tensor, staged), staged)

    def reduce(self, tensors: list[Tensor], opts: Any) -> MPIWork:
        tensor, root = tensors[0], opts.rootRank
        record = self._begin("reduce", tensor)
        reduction = Reduction(opts.reduceOp, tensor.dtype, self._size)
        staged = reduction.stage(tensor)
        if self.comm.rank != root:
            request = self.comm.Ireduce(numbers(staged), None, reduction.mpi, root)
            return MPIWork(self, record, [request], tensors, None, staged)
        request = self.comm.Ireduce(IN_PLACE, numbers(staged), reduction.mpi, root)
        return MPIWork(self, record, [request], tensors, lambda: reduction.finish(tensor, staged), staged)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> MPIWork:
        record = self._begin("reduce_scatter", input)
        reduction = Reduction(_op(opts), input.dtype, self._size)
        source, target = reduction.stage(input), reduction.room(output)
        if source is input and overlap(source, target):
            source = source.clone()
        request = self.comm.Ireduce_scatter_block(numbers(source), numbers(target), reduction.mpi)
        return MPIWork(self, record, [request], [output], lambda: reduction.finish(output, target), (source, target))

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> MPIWork:
        return self._combine([self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> MPIWork:
        output, parts = outputs[0], inputs[0]
        record = self._begin("reduce_scatter", output, sum(part.nbytes for part in parts))
        reduction = Reduction(_op(opts), output.dtype, self._size)
        source, target = reduction.stage(flat(parts)), reduction.room(output)
        counts = [part.numel() for part in parts]
        request = self.comm.Ireduce_scatter(numbers(source), numbers(target), counts, reduction.mpi)
        return MPIWork(self, record, [request], [output], lambda: reduction.finish(output, target), (source, target))

    # One to all, and all to one.

    def broadcast(self, tensors: list[Tensor], opts: Any) -> MPIWork:
        tensor, root = tensors[0], opts.rootRank
        sends = self.comm.rank == root
        record = self._begin("broadcast", tensor, tensor.nbytes if sends else 0)
        staged = on_host(tensor) if sends else room_for(tensor)
        request = self.comm.Ibcast(raw(staged), root)
        finish = None if sends or staged is tensor else lambda: put_back(tensor, staged)
        return MPIWork(self, record, [request], tensors, finish, staged)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> MPIWork:
        output, parts = outputs[0], inputs[0] if inputs else []
        record = self._begin("scatter", output, sum(part.nbytes for part in parts))
        target, source = room_for(output), flat(parts) if parts else None
        send = raw_parts(source, [part.nbytes for part in parts]) if source is not None else None
        request = self.comm.Iscatterv(send, raw(target), opts.rootRank)
        return MPIWork(self, record, [request], outputs, lambda: put_back(output, target), (source, target))

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> MPIWork:
        source, parts = on_host(inputs[0]), outputs[0] if outputs else []
        record = self._begin("gather", inputs[0])
        target = empty_for(parts) if parts else None
        receive = raw_parts(target, [part.nbytes for part in parts]) if target is not None else None
        request = self.comm.Igatherv(raw(source), receive, opts.rootRank)
        return MPIWork(self, record, [request], outputs, lambda: split(target, parts), (source, target))

    # All to all.

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> MPIWork:
        record = self._begin("all_gather", input)
        source, target = on_host(input), room_for(output)
        if source is input and overlap(source, target):
            source = source.clone()
        request = self.comm.Iallgather(raw(source), raw(target))
        finish = None if target is output else lambda: put_back(output, target)
        return MPIWork(self, record, [request], [output], finish, (source, target))

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> MPIWork:
        return self._combine([self.all_gather_single(*pair) for pair in zip(outputs, inputs, strict=True)])

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> MPIWork:
        return self._combine([self._allgather(*pair) for pair in zip(outputs, inputs, strict=True)])

    allgather_coalesced = allgather

    def _allgather(self, parts: list[Tensor], input: Tensor) -> MPIWork:
        record = self._begin("all_gather", input)
        source, target = on_host(input), empty_for(parts)
        request = self.comm.Iallgatherv(raw(source), raw_parts(target, [part.nbytes for part in parts]))
        return MPIWork(self, record, [request], [parts], lambda: split(target, parts), (source, target))

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        opts: Any = None,
    ) -> MPIWork:
        record = self._begin("all_to_all", input)
        source, target = on_host(input), room_for(output)
        if source is input and overlap(source, target):
            source = source.clone()
        request = self.comm.Ialltoallv(
            raw_parts(source, self._row_bytes(input, input_split_sizes)),
            raw_parts(target, self._row_bytes(output, output_split_sizes)),
        )
        return MPIWork(self, record, [request], [output], lambda: put_back(output, target), (source, target))

    alltoall_base = all_to_all_single

    def _row_bytes(self, tensor: Tensor, split_sizes: list[int]) -> list[int]:
        """Bytes for each rank: `split_sizes` rows, or equal parts."""
        if not split_sizes:
            return [tensor.nbytes // self._size] * self._size
        row = tensor.nbytes // tensor.shape[0] if tensor.shape[0] else 0
        return [rows * row for rows in split_sizes]

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> MPIWork:
        record = self._begin("all_to_all", inputs[0], sum(part.nbytes for part in inputs))
        source, target = flat(inputs), empty_for(outputs)
        request = self.comm.Ialltoallv(
            raw_parts(source, [part.nbytes for part in inputs]), raw_parts(target, [part.nbytes for part in outputs])
        )
        return MPIWork(self, record, [request], outputs, lambda: split(target, outputs), (source, target))

    def barrier(self, opts: Any = None) -> MPIWork:
        return MPIWork(self, self._begin("barrier", NOTHING), [self.comm.Ibarrier()], [NOTHING])

    # Point to point.

    def send(self, tensors: list[Tensor], dstRank: int, tag: int = 0) -> MPIWork:
        record = self._begin("send", tensors[0])
        source = on_host(tensors[0])
        return MPIWork(self, record, [self.comm.Isend(raw(source), dstRank, tag)], tensors, None, source)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int = 0) -> MPIWork:
        tensor = tensors[0]
        record = self._begin("recv", tensor, 0)
        target = room_for(tensor)
        request = self.comm.Irecv(raw(target), srcRank, tag)
        finish = None if target is tensor else lambda: put_back(tensor, target)
        return MPIWork(self, record, [request], tensors, finish, target)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> MPIWork:
        work = self.recv(tensors, MPI.ANY_SOURCE, tag)
        request, status = work.requests[0], MPI.Status()

        def test() -> bool:
            arrived = request.Test(status)
            if arrived:
                work.source = status.Get_source()
            return arrived

        work.test = test
        return work


class Together(MPIWork):
    """Several works as one."""

    def __init__(self, group: MPIGroup, works: Sequence[MPIWork]) -> None:
        self.works = works
        super().__init__(group, works[-1].record, [], [tensor for work in works for tensor in work.outcome])
        self.test = self._test_works

    def _test_works(self) -> bool:
        return all([work.poll() for work in self.works])


NOTHING = torch.empty(0)
groups: set[MPIGroup] = set()  # whose communicators are not freed
_SUM = ReduceOp(ReduceOp.SUM)


def _op(opts: Any) -> ReduceOp:
    return _SUM if opts is None else opts.reduceOp


def flat(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after another, in new host memory."""
    return torch.cat([part.detach().cpu().reshape(-1) for part in parts])


def empty_for(parts: Sequence[Tensor]) -> Tensor:
    """Host memory for the parts one after another."""
    return torch.empty(sum(part.numel() for part in parts), dtype=parts[0].dtype)


def split(target: Tensor | None, parts: Sequence[Tensor]) -> None:
    """Copy what arrived in `target` to its parts."""
    if target is not None:
        for part, arrived in zip(parts, target.split([part.numel() for part in parts]), strict=True):
            part.detach().copy_(arrived.view(part.shape))
