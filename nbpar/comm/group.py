"""A torch.distributed process group around an MPI communicator: what its operations have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

from .drain import Collective, Uid
from .signature import Signatures
from .state import state
from .trace import PAIRED, trace
from .waiting import check, soon
from .work import DONE, MPIWork, Together

ProcessGroup: Any = dist.ProcessGroup
HISTORY = 4096  # rooted collectives remembered


class AtOnce:
    """torch's options of a call that waits."""

    asyncOp = False


def waits(opts: Any) -> bool:
    """Whether the caller waits for the operation at once."""
    return opts is not None and not opts.asyncOp


class Group(ProcessGroup):
    """comm: the communicator, used for nothing else. ranks: its members, as ranks of the world. uid: alike on them all.

    live: works that are not done. started: how many collectives. early: the rooted ones among them, which this rank
    may have finished before another begins. signatures: of its collectives, if they are ever compared; signed: the number
    of the newest operation's, 0 if it has none.
    """

    def __init__(self, comm: MPI.Intracomm, uid: Uid, name: str = "", beside: MPI.Intracomm | None = None) -> None:
        super().__init__(comm.rank, comm.size)
        self.description = ""
        self.take(comm, uid, name, beside)

    def take(self, comm: MPI.Intracomm, uid: Uid, name: str = "", beside: MPI.Intracomm | None = None) -> None:
        """Begin on this communicator; the one before is freed or given up. beside: another one, for signatures."""
        self.comm, self.uid, self.ranks = comm, uid, uid[0]
        self.me, self.size_ = comm.rank, comm.size
        self.live: set[MPIWork] = set()
        self.started = self.signed = 0
        self.signatures = Signatures(beside, self.ranks) if beside is not None else None
        self.early: deque[Collective] = deque(maxlen=HISTORY)
        self._sweep_at = 64
        self.setGroupName(name)
        state.groups.append(self)

    def shutdown(self) -> None:
        """Free the communicator, unless operations on it are under way: then the next `renew` does."""
        self._sweep()
        if not self.live and not (self.signatures and self.signatures.pending) and self in state.groups:
            self.free()

    abort = shutdown

    def free(self) -> None:
        """Give the communicator back."""
        state.groups.remove(self)
        self.live.clear()
        self.comm.Free()
        if self.signatures:
            self.signatures.comm.Free()

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

    def begin(  # noqa: PLR0917
        self,
        operation: str,
        tensor: Tensor,
        nbytes: int,
        peer: int = -1,
        opts: Any = None,
        alike: tuple[int, ...] | None = None,
    ) -> int:
        """nbytes: bytes handed over or taken in. peer: a rank of this group. alike: the shape in which ranks must agree, if not the
        tensor's. opts: torch's; where they say that the caller will wait, ranks that are watched compare first what they call."""
        if state.reason is not None:
            check()
        call = trace.begin(self.label, operation, tensor, nbytes, self.ranks[peer] if peer >= 0 else -1)
        self.signed = 0
        if state.watched and self.signatures is not None and operation not in PAIRED:
            self.signed = self.signatures.start(call, operation, tensor.shape if alike is None else alike, tensor.dtype, peer)
            if waits(opts):
                self.signatures.settle(call)
        return call

    def same(self, number: int) -> bool:
        return self.signatures is None or self.signatures.same(number)

    def work(
        self,
        call: int,
        requests: Sequence[MPI.Request],
        outcome: list[Any],
        opts: Any,
        finish: Callable[[], None] | None = None,
        **facts: Any,
    ) -> Any:
        """The work of a started operation. It may be over already if the caller is going to wait for it anyway."""
        over = False
        try:
            over = waits(opts) and len(requests) == 1 and soon(requests[0].Test)
        finally:  # an interrupt may come in between, and MPI has the buffers
            if not over:
                work = MPIWork(self, call, requests, outcome, finish=finish, **facts)
        if not over:
            return work
        if finish is not None:
            finish()
        trace.end(call)
        return DONE

    def count(self, name: str, counts: Sequence[int], *facts: Any) -> Collective:
        self.started += 1
        return Collective(self.started, name, tuple(counts), *facts)

    def count_rooted(self, name: str, count: int, *facts: Any) -> Collective:
        collective = self.count(name, [count], *facts)
        self.early.append(collective)
        return collective

    def together(self, works: Sequence[Any]) -> Any:
        works = [work for work in works if work is not DONE]
        return Together(self, works) if len(works) > 1 else works[0] if works else DONE
