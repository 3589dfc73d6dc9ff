"""Operations made of messages between pairs of ranks. In the methods, names and arguments are torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI
from torch import Tensor

from ..errors import CollectiveMismatch
from .buffers import apart, on_host, put_back, raw, room_for
from .group import Group
from .signature import mixed_up, note
from .state import state
from .waiting import abort
from .work import MPIWork

Part = Tensor | None  # None: nothing for or from that rank


class Messages(Group):
    """Point-to-point calls, scatter, gather and all-to-all.

    MPI has the latter three too, but messages can be cancelled after a failure. The tag 0 is kept for them, torch's tags
    follow, the last one is kept for what is said of messages.
    """

    note_tag = int(MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 0)

    def send(self, tensors: list[Tensor], dstRank: int, tag: int = 0) -> MPIWork:
        call = self.begin("send", tensors[0], tensors[0].nbytes, dstRank)
        source = on_host(tensors[0])
        mine = note(call, source.nbytes) if state.watched else None
        requests = [] if mine is None else [self.comm.Isend([mine, MPI.BYTE], dstRank, self.note_tag)]
        requests.append(self.comm.Isend(raw(source), dstRank, tag + 1))
        return MPIWork(self, call, requests, tensors, keep=(source, mine), nbytes=source.nbytes)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int = 0) -> MPIWork:
        tensor = tensors[0]
        call = self.begin("recv", tensor, 0, srcRank)
        target = room_for(tensor)
        request = self.comm.Irecv(raw(target), srcRank, tag + 1)
        finish = None if target is tensor else lambda: put_back(tensor, target)
        facts: dict[str, Any] = {"finish": finish, "nbytes": target.nbytes, "ahead": True}
        mine = note(call, target.nbytes) if state.watched else None
        if mine is None:
            return MPIWork(self, call, [request], tensors, keep=target, receives=[request], **facts)
        said = bytearray(len(mine))
        both = [self.comm.Irecv([said, MPI.BYTE], srcRank, self.note_tag), request]
        work = MPIWork(self, call, both, tensors, keep=(target, said), receives=both, **facts)
        work.test = lambda: self._is_the_one(both[0], said, mine, srcRank) and request.Test()
        return work

    def _is_the_one(self, request: MPI.Request, said: bytearray, mine: bytes, source: int) -> bool:
        """Whether the message that comes is known to be the one that is waited for. If it is not, no wait goes on."""
        if not request.Test():
            return False
        if said == mine:
            return True
        abort(mixed_up(bytes(said), mine, self.ranks[source], self.ranks[self.me]), CollectiveMismatch)
        return False

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

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> Any:
        output, root = outputs[0], opts.rootRank
        sources: list[Part] = [None] * self.size_
        if self.me == root:
            sources = [on_host(part) for part in inputs[0]]
        call = self.begin("scatter", output, sum(part.nbytes for part in sources if part is not None), root, opts)
        target = room_for(output)
        targets = [target if rank == root else None for rank in range(self.size_)]
        return self._exchange(call, sources, targets, outputs, opts=opts, finish=lambda: put_back(output, target))

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> Any:
        source, root = on_host(inputs[0]), opts.rootRank
        call = self.begin("gather", inputs[0], inputs[0].nbytes, root, opts)
        parts = outputs[0] if self.me == root else []
        targets: list[Part] = [room_for(part) for part in parts] or [None] * self.size_
        sources = [source if rank == root else None for rank in range(self.size_)]
        return self._exchange(call, sources, targets, outputs, opts=opts, finish=lambda: put_all_back(parts, targets))

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        opts: Any = None,
    ) -> Any:
        call = self.begin("all_to_all", input, input.nbytes, opts=opts)
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
        call = self.begin("all_to_all", inputs[0], sum(part.nbytes for part in inputs), opts=opts)
        targets = [room_for(part) for part in outputs]
        sources = [on_host(part) for part in inputs]
        return self._exchange(call, sources, targets, outputs, opts=opts, finish=lambda: put_all_back(outputs, targets))

    def _exchange(
        self,
        call: int,
        sources: Sequence[Part],
        targets: Sequence[Part],
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
        return self.work(
            call,
            receives + sends,
            outcome,
            opts,
            finish,
            keep=(sources, targets),
            receives=receives,
            nbytes=nbytes,
        )


def put_all_back(parts: Sequence[Tensor], targets: Sequence[Any]) -> None:
    """`put_back` for each part, of any shape; nothing for no parts."""
    for part, target in zip(parts, targets, strict=False):
        put_back(part, target)
