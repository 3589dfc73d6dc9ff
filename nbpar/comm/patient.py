"""mpi4py's communicator for cells: the calls that block in C are made of ones that do not, so that an abort or interrupt ends them.

    comm.Recv(x)       Irecv, and a poll that can be ended           (buffers)
    comm.recv()        improbe until a message is there, then take it (Python objects)
    comm.allgather(o)  sizes by Iallgather, pickles by Iallgatherv    (Python objects)

`MPI.COMM_WORLD` is such a communicator in a rank, and so is all that is made from it (Dup, Split, Create_group). Requests that
non-blocking calls return can be waited for in the same way. What stays as it is in C: `Create_group`, `Request.Waitall`, files and
windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce as fold
from typing import Any, Literal

import numpy as np
from mpi4py import MPI

from .trace import trace
from .waiting import wait_until

IMMEDIATE = {
    "Send": "Isend", "Ssend": "Issend", "Rsend": "Irsend", "Barrier": "Ibarrier", "Bcast": "Ibcast", "Gather": "Igather",
    "Gatherv": "Igatherv", "Scatter": "Iscatter", "Scatterv": "Iscatterv", "Allgather": "Iallgather", "Allgatherv": "Iallgatherv",
    "Alltoall": "Ialltoall", "Alltoallv": "Ialltoallv", "Alltoallw": "Ialltoallw", "Reduce": "Ireduce", "Allreduce": "Iallreduce",
    "Reduce_scatter": "Ireduce_scatter", "Reduce_scatter_block": "Ireduce_scatter_block", "Scan": "Iscan", "Exscan": "Iexscan",
    "send": "isend", "ssend": "issend",
}  # fmt: skip
REQUESTS = ("Isend", "Issend", "Irsend", "Irecv", "isend", "issend", "irecv", "Ibarrier", "Ibcast", "Igather", "Iscatter",
            "Iallgather", "Ialltoall", "Ireduce", "Iallreduce")  # fmt: skip

MAKERS = ("Dup", "Clone", "Split", "Split_type", "Create", "Create_group")


class Something:
    """Stands in the trace for buffers of which nothing is known."""

    shape: tuple[int, ...] = ()
    dtype = None


def patiently(ready: Callable[[], bool], operation: str, group: str) -> None:
    """Wait as the rest of this package does: traced, and ended by an abort. ready: stays true once it was."""
    if ready():
        return
    call = trace.begin(group, operation, Something, 0)
    trace.waiting = call
    try:
        wait_until(ready)
    finally:
        trace.waiting = None
        trace.end(call)


class PatientRequest(MPI.Request):
    """A request whose wait can be ended."""

    def Wait(self, status: MPI.Status | None = None) -> Literal[True]:
        patiently(lambda: self.Test(status), "Wait", "mpi4py")
        return True

    def wait(self, status: MPI.Status | None = None) -> Any:
        result: list[Any] = []

        def ready() -> bool:
            if not result:
                done, value = self.test(status)
                if done:
                    result.append(value)
            return bool(result)

        patiently(ready, "wait", "mpi4py")
        return result[0]


class PatientComm(MPI.Intracomm):
    """A communicator whose waits can be ended."""

    def _patiently(self, request: MPI.Request, operation: str, status: MPI.Status | None = None) -> None:
        try:
            patiently(lambda: request.Test(status), operation, self.name or "mpi4py")
        except BaseException:
            _given_up.append((self, request))
            raise

    def Recv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG, status: MPI.Status | None = None) -> None:
        self._patiently(super().Irecv(buf, source, tag), "Recv", status)

    def Sendrecv(  # noqa: PLR0917 (mpi4py's own order)
        self, sendbuf: Any, dest: int, sendtag: int = 0, recvbuf: Any = None, source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG, status: MPI.Status | None = None,
    ) -> None:  # fmt: skip
        sending = super().Isend(sendbuf, dest, sendtag)
        self._patiently(super().Irecv(recvbuf, source, recvtag), "Sendrecv", status)
        self._patiently(sending, "Sendrecv")

    def Probe(self, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG, status: MPI.Status | None = None) -> Literal[True]:
        patiently(lambda: super(PatientComm, self).Iprobe(source, tag, status), "Probe", self.name)
        return True

    probe = Probe

    def recv(self, buf: Any = None, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG, status: MPI.Status | None = None) -> Any:
        found: list[MPI.Message] = []

        def ready() -> bool:
            if not found and (message := super(PatientComm, self).improbe(source, tag)) is not None:
                found.append(message)
            return bool(found)

        patiently(ready, "recv", self.name)
        return found[0].recv(status)

    def sendrecv(  # noqa: PLR0917
        self, sendobj: Any, dest: int, sendtag: int = 0, recvbuf: Any = None, source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG, status: MPI.Status | None = None,
    ) -> Any:  # fmt: skip
        sending = super().isend(sendobj, dest, sendtag)
        received = self.recv(recvbuf, source, recvtag, status)
        self._patiently(sending, "sendrecv")
        return received

    # ---- collectives of Python objects: pickles, whose sizes go first -----------------------------------------------------

    def barrier(self) -> None:
        self._patiently(super().Ibarrier(), "barrier")

    def bcast(self, obj: Any, root: int = 0) -> Any:
        data = bytearray(MPI.pickle.dumps(obj)) if self.rank == root else bytearray()
        size = np.array(len(data), np.int64)
        self._patiently(super().Ibcast(size, root), "bcast")
        data = data or bytearray(int(size))
        self._patiently(super().Ibcast([data, MPI.BYTE], root), "bcast")
        return obj if self.rank == root else MPI.pickle.loads(data)

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        data = MPI.pickle.dumps(sendobj)
        sizes = np.zeros(self.size, np.int64) if self.rank == root else None
        self._patiently(super().Igather(np.array(len(data), np.int64), sizes, root), "gather")
        whole = bytearray(0 if sizes is None else int(sizes.sum()))
        place = None if sizes is None else [whole, sizes, MPI.BYTE]
        self._patiently(super().Igatherv([data, MPI.BYTE], place, root), "gather")
        return None if sizes is None else pieces(whole, sizes)

    def allgather(self, sendobj: Any) -> list[Any]:
        data = MPI.pickle.dumps(sendobj)
        sizes = np.zeros(self.size, np.int64)
        self._patiently(super().Iallgather(np.array(len(data), np.int64), sizes), "allgather")
        whole = bytearray(int(sizes.sum()))
        self._patiently(super().Iallgatherv([data, MPI.BYTE], [whole, sizes, MPI.BYTE]), "allgather")
        return pieces(whole, sizes)

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        packed = [MPI.pickle.dumps(obj) for obj in sendobj or ()] if self.rank == root else []
        if self.rank == root and len(packed) != self.size:
            raise ValueError(f"expecting {self.size} items, got {len(packed)}")
        sizes = np.array([len(data) for data in packed], np.int64) if self.rank == root else None
        size = np.zeros((), np.int64)
        self._patiently(super().Iscatter(sizes, size, root), "scatter")
        mine = bytearray(int(size))
        whole = [b"".join(packed), sizes, MPI.BYTE] if self.rank == root else None
        self._patiently(super().Iscatterv(whole, [mine, MPI.BYTE], root), "scatter")
        return MPI.pickle.loads(mine)

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        packed = [MPI.pickle.dumps(obj) for obj in sendobj]
        if len(packed) != self.size:
            raise ValueError(f"expecting {self.size} items, got {len(packed)}")
        sending, sizes = np.array([len(data) for data in packed], np.int64), np.zeros(self.size, np.int64)
        self._patiently(super().Ialltoall(sending, sizes), "alltoall")
        whole = bytearray(int(sizes.sum()))
        self._patiently(super().Ialltoallv([b"".join(packed), sending, MPI.BYTE], [whole, sizes, MPI.BYTE]), "alltoall")
        return pieces(whole, sizes)

    def reduce(self, sendobj: Any, op: Any = MPI.SUM, root: int = 0) -> Any:
        objs = self.gather(sendobj, root)
        return None if objs is None else fold(op, objs)

    def allreduce(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        return fold(op, self.allgather(sendobj))

    def scan(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        return fold(op, self.allgather(sendobj)[: self.rank + 1])

    def exscan(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        objs = self.allgather(sendobj)[: self.rank]
        return fold(op, objs) if objs else None


def pieces(whole: bytearray, sizes: np.ndarray[Any, Any]) -> list[Any]:
    """The objects whose pickles lie one behind the other."""
    ends = np.cumsum(sizes).tolist()
    return [MPI.pickle.loads(whole[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def _patient(blocking: str, immediate: str) -> Callable[..., None]:
    def call(self: PatientComm, *args: Any, **kwargs: Any) -> None:
        self._patiently(getattr(MPI.Intracomm, immediate)(self, *args, **kwargs), blocking)

    call.__name__ = blocking
    call.__doc__ = getattr(MPI.Intracomm, blocking).__doc__
    return call


def _patient_request(name: str) -> Callable[..., PatientRequest]:
    def call(self: PatientComm, *args: Any, **kwargs: Any) -> PatientRequest:
        return PatientRequest(getattr(MPI.Intracomm, name)(self, *args, **kwargs))

    call.__name__ = name
    call.__doc__ = getattr(MPI.Intracomm, name).__doc__
    return call


def _patient_comm(name: str) -> Callable[..., Any]:
    def call(self: PatientComm, *args: Any, **kwargs: Any) -> Any:
        if name != "Create_group":  # which not all ranks call
            self._patiently(MPI.Intracomm.Ibarrier(self), name)  # once all are here the blocking call returns soon
        made = getattr(MPI.Intracomm, name)(self, *args, **kwargs)
        return PatientComm(made) if isinstance(made, MPI.Intracomm) and made != MPI.COMM_NULL else made

    call.__name__ = name
    call.__doc__ = getattr(MPI.Intracomm, name).__doc__
    return call


for _blocking, _immediate in IMMEDIATE.items():
    setattr(PatientComm, _blocking, _patient(_blocking, _immediate))
for _name in REQUESTS:
    setattr(PatientComm, _name, _patient_request(_name))

for _name in MAKERS:
    setattr(PatientComm, _name, _patient_comm(_name))


_given_up: list[tuple[PatientComm, MPI.Request]] = []  # MPI may still have their buffers


def install() -> None:
    """Cells that import MPI find patient communicators in it."""
    MPI.COMM_WORLD = PatientComm(MPI.COMM_WORLD)  # type: ignore[misc]


def renew(world: MPI.Intracomm) -> None:
    """If a rank gave up a call on `MPI.COMM_WORLD`, cells find a new one there, on which nothing is under way. Collective."""
    if world.allreduce(any(comm == MPI.COMM_WORLD for comm, _ in _given_up), MPI.LOR):
        MPI.COMM_WORLD = PatientComm(world.Dup())  # type: ignore[misc]
