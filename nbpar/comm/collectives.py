"""The collectives of backend mpi, as torch.distributed calls them: one non-blocking MPI call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from .buffers import (
    NUMBERS,
    PLAIN,
    ReduceOp,
    Reduction,
    apart,
    empty_for,
    flat,
    numbers,
    on_host,
    put_back,
    raw,
    raw_parts,
    room_for,
    split,
)
from .drain import Collective
from .group import waits
from .messages import Messages
from .trace import trace
from .waiting import soon
from .work import DONE, MPIWork

IN_PLACE = MPI.IN_PLACE
NOTHING = torch.empty(0)
SUM = ReduceOp(ReduceOp.SUM)


class MPIGroup(Messages):
    """A process group with backend mpi. torch finds the methods by name, from Python and from C++."""

    @classmethod
    def create(cls, ranks: Sequence[int]) -> MPIGroup:
        """A group of these ranks of the default group; of the whole world if there are none. Called by its members."""
        from .join import new_group

        return new_group(ranks)

    # Reductions.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        if len(tensors) == 1:
            return self._all_reduce(tensors[0], opts)
        return self.together([self._all_reduce(tensor, opts) for tensor in tensors])

    allreduce_coalesced = allreduce

    def _all_reduce(self, tensor: Tensor, opts: Any) -> Any:
        op = SUM if opts is None else opts.reduceOp
        mpi = PLAIN.get(hash(op))
        if mpi is None or tensor.dtype not in NUMBERS or not (tensor.is_cpu and tensor.is_contiguous()):
            return self._all_reduce_staged(tensor, op, opts)
        return self.all_reduce_plain(tensor, mpi, hash(op), opts)

    def all_reduce_plain(self, tensor: Tensor, mpi: MPI.Op, op: int, opts: Any) -> Any:
        """All-reduce of a tensor, of any shape, that MPI can work on as it is. op: hash of torch's."""
        call = self.begin("all_reduce", tensor, tensor.nbytes, opts=opts)
        self.started += 1
        request = self.comm.Iallreduce(IN_PLACE, numbers(tensor), mpi)
        over = False
        try:
            over = waits(opts) and soon(request.Test)
        finally:  # an interrupt may come in between, and MPI has the buffer
            if not over:
                collective = Collective(self.started, "all_reduce", (tensor.numel(),), tensor.dtype, op)
                work = MPIWork(self, call, [request], [tensor], keep=tensor, collective=collective, nbytes=tensor.nbytes)
        if not over:
            return work
        trace.end(call)
        return DONE

    def _all_reduce_staged(self, tensor: Tensor, op: Any, opts: Any) -> Any:
        call = self.begin("all_reduce", tensor, tensor.nbytes, opts=opts)
        reduction = Reduction(op, tensor.dtype, self.size_)
        staged = reduction.stage(tensor)
        collective = self.count("all_reduce", [staged.numel()], staged.dtype, hash(op))
        request = self.comm.Iallreduce(IN_PLACE, numbers(staged), reduction.mpi)
        return self.work(
            call,
            [request],
            [tensor],
            opts,
            lambda: reduction.finish(tensor, staged),
            keep=staged,
            collective=collective,
            nbytes=staged.nbytes,
        )

    def reduce(self, tensors: list[Tensor], opts: Any) -> Any:
        tensor, root = tensors[0], opts.rootRank
        call = self.begin("reduce", tensor, tensor.nbytes, root, opts)
        reduction = Reduction(opts.reduceOp, tensor.dtype, self.size_)
        staged, at_root = reduction.stage(tensor), self.me == root
        send, receive = (IN_PLACE, numbers(staged)) if at_root else (numbers(staged), None)
        collective = self.count_rooted("reduce", staged.numel(), staged.dtype, hash(reduction.op), root)
        request = self.comm.Ireduce(send, receive, reduction.mpi, root)
        finish = (lambda: reduction.finish(tensor, staged)) if at_root else None
        return self.work(call, [request], tensors, opts, finish, keep=staged, collective=collective, nbytes=staged.nbytes)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        call = self.begin("reduce_scatter", input, input.nbytes, opts=opts)
        op = SUM if opts is None else opts.reduceOp
        reduction = Reduction(op, input.dtype, self.size_)
        target = reduction.room(output)
        source = apart(reduction.stage(input), target)
        collective = self.count("reduce_scatter_equal", [target.numel()] * self.size_, source.dtype, hash(op))
        request = self.comm.Ireduce_scatter_block(numbers(source), numbers(target), reduction.mpi)
        return self.work(
            call,
            [request],
            [output],
            opts,
            lambda: reduction.finish(output, target),
            keep=(source, target),
            collective=collective,
            nbytes=source.nbytes,
        )

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        return self.together([self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        output, parts = outputs[0], inputs[0]
        total = (sum(part.numel() for part in parts),)
        call = self.begin("reduce_scatter", output, sum(part.nbytes for part in parts), opts=opts, alike=total)
        op = SUM if opts is None else opts.reduceOp
        reduction = Reduction(op, output.dtype, self.size_)
        source, target = reduction.stage(flat(parts)), reduction.room(output)
        counts = [part.numel() for part in parts]
        collective = self.count("reduce_scatter", counts, source.dtype, hash(op))
        request = self.comm.Ireduce_scatter(numbers(source), numbers(target), counts, reduction.mpi)
        return self.work(
            call,
            [request],
            [output],
            opts,
            lambda: reduction.finish(output, target),
            keep=(source, target),
            collective=collective,
            nbytes=source.nbytes,
        )

    # The same bytes for all.

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Any:
        tensor, root = tensors[0], opts.rootRank
        sends = self.me == root
        call = self.begin("broadcast", tensor, tensor.nbytes if sends else 0, root, opts)
        staged = on_host(tensor) if sends else room_for(tensor)
        collective = self.count_rooted("broadcast", staged.nbytes, torch.uint8, 0, root)
        request = self.comm.Ibcast(raw(staged), root)
        finish = None if sends or staged is tensor else lambda: put_back(tensor, staged)
        return self.work(call, [request], tensors, opts, finish, keep=staged, collective=collective, nbytes=staged.nbytes)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        call = self.begin("all_gather", input, input.nbytes, opts=opts)
        target = room_for(output)
        source = apart(on_host(input), target)
        collective = self.count("all_gather_equal", [source.nbytes] * self.size_)
        request = self.comm.Iallgather(raw(source), raw(target))
        finish = None if target is output else lambda: put_back(output, target)
        return self.work(
            call,
            [request],
            [output],
            opts,
            finish,
            keep=(source, target),
            collective=collective,
            nbytes=target.nbytes,
        )

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        return self.together([self.all_gather_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        return self.together([self._all_gather(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    allgather_coalesced = allgather

    def _all_gather(self, parts: list[Tensor], input: Tensor, opts: Any) -> Any:
        source, target = on_host(input), empty_for(parts)
        call = self.begin("all_gather", input, input.nbytes, opts=opts, alike=target.shape)
        counts = [part.nbytes for part in parts]
        collective = self.count("all_gather", counts)
        request = self.comm.Iallgatherv(raw(source), raw_parts(target, counts))
        return self.work(
            call,
            [request],
            [parts],
            opts,
            lambda: split(target, parts),
            keep=(source, target),
            collective=collective,
            nbytes=target.nbytes,
        )

    def barrier(self, opts: Any = None) -> Any:
        call = self.begin("barrier", NOTHING, 0, opts=opts)
        collective = self.count("barrier", [])
        return self.work(call, [self.comm.Ibarrier()], [NOTHING], opts, collective=collective)
