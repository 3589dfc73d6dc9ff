"""A torch.distributed process group over an MPI communicator.

Every operation is a non-blocking MPI call whose requests a Work polls. In the methods, names and arguments are torch's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
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
from .drain import Collective, Uid
from .state import state
from .trace import trace
from .waiting import check, soon
from .work import DONE, MPIWork, Together

ProcessGroup: Any = dist.ProcessGroup
IN_PLACE = MPI.IN_PLACE
NOTHING = torch.empty(0)
SUM = ReduceOp(ReduceOp.SUM)
HISTORY = 4096  # rooted collectives remembered


class MPIGroup(ProcessGroup):
    """comm: the communicator, used for nothing else. ranks: its members, as ranks of the world. uid: alike on them all.

    live: works that are not done. started: how many collectives. early: the rooted ones among them, which this rank
    may have finished before another begins.
    """

    def __init__(self, comm: MPI.Intracomm, uid: Uid, name: str = "") -> None:
        super().__init__(comm.rank, comm.size)
        self.comm, self.uid, self.ranks = comm, uid, uid[0]
        self.me, self.size_ = comm.rank, comm.size
        self.live: set[MPIWork] = set()
        self.started = 0
        self.early: deque[Collective] = deque(maxlen=HISTORY)
        self.description = ""
        self._sweep_at = 64
        self.setGroupName(name)
        state.groups.append(self)

    @classmethod
    def create(cls, ranks: Sequence[int]) -> MPIGroup:
        """A group of these ranks of the default group; of the whole world if there are none. Called by its members."""
        from .join import new_group

        return new_group(ranks)

    def shutdown(self) -> None:
        """Free the communicator, unless operations on it are under way: then the next `renew` does."""
        self._sweep()
        if not self.live and self in state.groups:
            self.free()

    abort = shutdown

    def free(self) -> None:
        """Give the communicator back."""
        state.groups.remove(self)
        self.live.clear()
        self.comm.Free()

    def unfinished(self) -> list[Collective]:
        """The collectives that other ranks may have missed."""
        return [*self.early, *(work.collective for work in self.live if work.collective is not None)]

    def hold(self, work: MPIWork) -> None:
        """Keep a work until it is done; now and then, look which of those that nobody waits for are."""
        self.live.add(work)
        if len(self.live) >= self._sweep_at:
            self._sweep()
            self._sweep_at = 2 * len(self.live) + 64

    def _sweep(self) -> None:
        for work in list(self.live):
            work.poll()

    # Names: torch asks C++ for them, C++ asks here.

    def getBackendName(self) -> str:
        return "mpi"

    name = getBackendName

    def getRank(self) -> int:
        return self.me

    def getSize(self) -> int:
        return self.size_

    def setGroupName(self, name: str) -> None:
        self.label = name
        trace.members[name] = list(self.ranks)

    def getGroupName(self) -> str:
        return self.label

    def setGroupDesc(self, description: str) -> None:
        self.description = description

    def getGroupDesc(self) -> str:
        return self.description

    # Starting an operation.

    def _begin(self, operation: str, tensor: Tensor, nbytes: int, peer: int = -1) -> int:
        """peer: a rank of this group."""
        if state.reason is not None:
            check()
        return trace.begin(self.label, operation, tensor, nbytes, self.ranks[peer] if peer >= 0 else -1)

    def _work(
        self,
        call: int,
        requests: Sequence[MPI.Request],
        outcome: list[Any],
        opts: Any,
        finish: Callable[[], None] | None = None,
        **facts: Any,
    ) -> Any:
        """The work of a started operation. It may be over already if the caller is going to wait for it anyway."""
        if opts is not None and not opts.asyncOp and len(requests) == 1 and soon(requests[0].Test):
            if finish is not None:
                finish()
            trace.end(call)
            return DONE
        return MPIWork(self, call, requests, outcome, finish=finish, **facts)

    def _collective(self, name: str, counts: Sequence[int], *facts: Any) -> Collective:
        self.started += 1
        return Collective(self.started, name, tuple(counts), *facts)

    def _rooted(self, name: str, count: int, *facts: Any) -> Collective:
        collective = self._collective(name, [count], *facts)
        self.early.append(collective)
        return collective

    def _together(self, works: Sequence[Any]) -> Any:
        works = [work for work in works if work is not DONE]
        return Together(self, works) if len(works) > 1 else works[0] if works else DONE

    # Reductions.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        if len(tensors) == 1:
            return self._all_reduce(tensors[0], opts)
        return self._together([self._all_reduce(tensor, opts) for tensor in tensors])

    allreduce_coalesced = allreduce

    def _all_reduce(self, tensor: Tensor, opts: Any) -> Any:
        op = SUM if opts is None else opts.reduceOp
        mpi = PLAIN.get(hash(op))
        if mpi is None or tensor.dtype not in NUMBERS or not (tensor.is_cpu and tensor.is_contiguous()):
            return self._all_reduce_staged(tensor, op, opts)
        return self.all_reduce_plain(tensor, mpi, hash(op), opts is not None and not opts.asyncOp)

    def all_reduce_plain(self, tensor: Tensor, mpi: MPI.Op, op: int, waits: bool) -> Any:
        """All-reduce of a tensor that MPI can work on as it is. op: hash of torch's. waits: the caller will, at once."""
        call = self._begin("all_reduce", tensor, tensor.nbytes)
        self.started += 1
        request = self.comm.Iallreduce(IN_PLACE, numbers(tensor), mpi)
        if waits and soon(request.Test):
            trace.end(call)
            return DONE
        collective = Collective(self.started, "all_reduce", (tensor.numel(),), tensor.dtype, op)
        return MPIWork(self, call, [request], [tensor], keep=tensor, collective=collective, nbytes=tensor.nbytes)

    def _all_reduce_staged(self, tensor: Tensor, op: Any, opts: Any) -> Any:
        call = self._begin("all_reduce", tensor, tensor.nbytes)
        reduction = Reduction(op, tensor.dtype, self.size_)
        staged = reduction.stage(tensor)
        collective = self._collective("all_reduce", [staged.numel()], staged.dtype, hash(op))
        request = self.comm.Iallreduce(IN_PLACE, numbers(staged), reduction.mpi)
        return self._work(
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
        call = self._begin("reduce", tensor, tensor.nbytes, root)
        reduction = Reduction(opts.reduceOp, tensor.dtype, self.size_)
        staged, at_root = reduction.stage(tensor), self.me == root
        send, receive = (IN_PLACE, numbers(staged)) if at_root else (numbers(staged), None)
        collective = self._rooted("reduce", staged.numel(), staged.dtype, hash(reduction.op), root)
        request = self.comm.Ireduce(send, receive, reduction.mpi, root)
        finish = (lambda: reduction.finish(tensor, staged)) if at_root else None
        return self._work(call, [request], tensors, opts, finish, keep=staged, collective=collective, nbytes=staged.nbytes)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        call = self._begin("reduce_scatter", input, input.nbytes)
        op = SUM if opts is None else opts.reduceOp
        reduction = Reduction(op, input.dtype, self.size_)
        target = reduction.room(output)
        source = apart(reduction.stage(input), target)
        collective = self._collective("reduce_scatter_equal", [target.numel()] * self.size_, source.dtype, hash(op))
        request = self.comm.Ireduce_scatter_block(numbers(source), numbers(target), reduction.mpi)
        return self._work(
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
        return self._together([self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        output, parts = outputs[0], inputs[0]
        call = self._begin("reduce_scatter", output, sum(part.nbytes for part in parts))
        op = SUM if opts is None else opts.reduceOp
        reduction = Reduction(op, output.dtype, self.size_)
        source, target = reduction.stage(flat(parts)), reduction.room(output)
        counts = [part.numel() for part in parts]
        collective = self._collective("reduce_scatter", counts, source.dtype, hash(op))
        request = self.comm.Ireduce_scatter(numbers(source), numbers(target), counts, reduction.mpi)
        return self._work(
            call,
            [request],
            [output],
            opts,
            lambda: reduction.finish(output, target),
            keep=(source, target),
            collective=collective,
            nbytes=source.nbytes,
        )

    # One to all, and all to one.

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Any:
        tensor, root = tensors[0], opts.rootRank
        sends = self.me == root
        call = self._begin("broadcast", tensor, tensor.nbytes if sends else 0, root)
        staged = on_host(tensor) if sends else room_for(tensor)
        collective = self._rooted("broadcast", staged.nbytes, torch.uint8, 0, root)
        request = self.comm.Ibcast(raw(staged), root)
        finish = None if sends or staged is tensor else lambda: put_back(tensor, staged)
        return self._work(call, [request], tensors, opts, finish, keep=staged, collective=collective, nbytes=staged.nbytes)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> Any:
        output, root = outputs[0], opts.rootRank
        sources: list[Tensor | None] = [None] * self.size_
        if self.me == root:
            sources = [on_host(part) for part in inputs[0]]
        call = self._begin("scatter", output, sum(part.nbytes for part in sources if part is not None), root)
        target = room_for(output)
        targets = [target if rank == root else None for rank in range(self.size_)]
        return self._exchange(call, sources, targets, outputs, opts=opts, finish=lambda: put_back(output, target))

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> Any:
        source, root = on_host(inputs[0]), opts.rootRank
        call = self._begin("gather", inputs[0], inputs[0].nbytes, root)
        parts = outputs[0] if self.me == root else []
        targets: list[Tensor | None] = [room_for(part) for part in parts] or [None] * self.size_
        sources = [source if rank == root else None for rank in range(self.size_)]
        return self._exchange(call, sources, targets, outputs, opts=opts, finish=lambda: put_all_back(parts, targets))

    # All to all.

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        call = self._begin("all_gather", input, input.nbytes)
        target = room_for(output)
        source = apart(on_host(input), target)
        collective = self._collective("all_gather_equal", [source.nbytes] * self.size_)
        request = self.comm.Iallgather(raw(source), raw(target))
        finish = None if target is output else lambda: put_back(output, target)
        return self._work(
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
        return self._together([self.all_gather_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        return self._together([self._all_gather(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    allgather_coalesced = allgather

    def _all_gather(self, parts: list[Tensor], input: Tensor, opts: Any) -> Any:
        call = self._begin("all_gather", input, input.nbytes)
        source, target = on_host(input), empty_for(parts)
        counts = [part.nbytes for part in parts]
        collective = self._collective("all_gather", counts)
        request = self.comm.Iallgatherv(raw(source), raw_parts(target, counts))
        return self._work(
            call,
            [request],
            [parts],
            opts,
            lambda: split(target, parts),
            keep=(source, target),
            collective=collective,
            nbytes=target.nbytes,
        )

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        opts: Any = None,
    ) -> Any:
        call = self._begin("all_to_all", input, input.nbytes)
        target = room_for(output)
        source = apart(on_host(input), target)
        sources, targets = self._rows(source, input_split_sizes), self._rows(target, output_split_sizes)
        return self._exchange(call, sources, targets, [output], opts=opts, finish=lambda: put_back(output, target))

    alltoall_base = all_to_all_single

    def _rows(self, tensor: Tensor, split_sizes: list[int]) -> list[Tensor]:
        """The part of a contiguous tensor for each rank: so many rows, or equal parts."""
        if split_sizes:
            return list(tensor.split(split_sizes))
        return list(tensor.view(-1).split(max(1, tensor.numel() // self.size_))) if tensor.numel() else [tensor] * self.size_

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        call = self._begin("all_to_all", inputs[0], sum(part.nbytes for part in inputs))
        targets = [room_for(part) for part in outputs]
        sources = [on_host(part) for part in inputs]
        return self._exchange(call, sources, targets, outputs, opts=opts, finish=lambda: put_all_back(outputs, targets))

    def barrier(self, opts: Any = None) -> Any:
        call = self._begin("barrier", NOTHING, 0)
        collective = self._collective("barrier", [])
        return self._work(call, [self.comm.Ibarrier()], [NOTHING], opts, collective=collective)

    # Point to point. The tag 0 is kept for `_exchange`, torch's tags follow.

    def _exchange(
        self,
        call: int,
        sources: Sequence[Tensor | None],
        targets: Sequence[Tensor | None],
        outcome: list[Any],
        *,
        opts: Any,
        finish: Callable[[], None],
    ) -> Any:
        """Send each source to its rank, and receive each target from its rank."""
        comm = self.comm
        receives = [comm.Irecv(raw(part), rank, 0) for rank, part in enumerate(targets) if part is not None]
        sends = [comm.Isend(raw(part), rank, 0) for rank, part in enumerate(sources) if part is not None]
        nbytes = sum(part.nbytes for part in (*sources, *targets) if part is not None)
        return self._work(
            call,
            receives + sends,
            outcome,
            opts,
            finish,
            keep=(sources, targets),
            receives=receives,
            nbytes=nbytes,
        )

    def send(self, tensors: list[Tensor], dstRank: int, tag: int = 0) -> MPIWork:
        call = self._begin("send", tensors[0], tensors[0].nbytes, dstRank)
        source = on_host(tensors[0])
        request = self.comm.Isend(raw(source), dstRank, tag + 1)
        return MPIWork(self, call, [request], tensors, keep=source, nbytes=source.nbytes)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int = 0) -> MPIWork:
        tensor = tensors[0]
        call = self._begin("recv", tensor, 0, srcRank)
        target = room_for(tensor)
        request = self.comm.Irecv(raw(target), srcRank, tag + 1)
        finish = None if target is tensor else lambda: put_back(tensor, target)
        return MPIWork(self, call, [request], tensors, finish=finish, keep=target, receives=[request], nbytes=target.nbytes)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> MPIWork:
        work = self.recv(tensors, MPI.ANY_SOURCE, tag)
        status = MPI.Status()

        def test() -> bool:
            arrived = work.requests[0].Test(status)
            if arrived:
                work.source = status.Get_source()
            return arrived

        work.test = test
        return work


def put_all_back(parts: Sequence[Tensor], targets: Sequence[Any]) -> None:
    """`put_back` for each part; nothing for no parts."""
    for part, target in zip(parts, targets, strict=False):
        put_back(part, target)
