"""A started operation: what torch calls a Work, around MPI requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.futures import Future

from ..errors import NbparError
from .state import state
from .trace import trace
from .waiting import SLOW, soon, wait_until

if TYPE_CHECKING:
    from .drain import Collective
    from .group import Group

Work: Any = dist.distributed_c10d.Work
Tensor: Any = torch.Tensor
PROMPT = 100e-6  # seconds beyond a transfer's own time before its future is left to the progress thread


class MPIWork(Work):
    """call: its number in the trace. keep: the buffers of the requests. finish: brings what arrived to the result.
    collective, receives: how to bring it to an end if it is given up, see `drain`. ahead: whether the rank is in it only once it
    waits for it, as for a receive; until then it has posted it.

    The group holds the work until MPI is done with the buffers, whoever else forgets it.
    """

    def __init__(
        self,
        group: Group,
        call: int,
        requests: Sequence[MPI.Request],
        outcome: list[Any],
        *,
        finish: Callable[[], None] | None = None,
        keep: Any = None,
        nbytes: int = 0,
        collective: Collective | None = None,
        receives: Sequence[MPI.Request] = (),
        ahead: bool = False,
    ) -> None:
        super().__init__()
        self.group, self.call, self.requests = group, call, requests
        self.outcome, self.finish, self.keep, self.nbytes = outcome, finish, keep, nbytes
        self.collective, self.receives, self.ahead = collective, receives, ahead
        self.done = False
        self.source = -1
        self.failure: NbparError | None = None
        self.future: Future[Any] | None = None
        self.signed = group.signed  # not done before this many signatures are compared
        self.lock = threading.Lock()  # a request may be tested by one thread at a time
        self.test: Callable[[], bool] = requests[0].Test if len(requests) == 1 else self._test_all
        group.hold(self)

    def _test_all(self) -> bool:
        return MPI.Request.Testall(list(self.requests))

    def poll(self) -> bool:
        """Whether the operation is done; brings it to its end if MPI says so."""
        if not self.done and self.lock.acquire(blocking=False):
            try:
                if not self.done and (not self.signed or self.group.same(self.signed)) and self.test():
                    self._complete()
            finally:
                self.lock.release()
        return self.done

    def _complete(self) -> None:
        if self.finish is not None:
            self.finish()
        self._begin()
        trace.end(self.call)
        self.done = True
        self.finish = self.keep = None
        self.group.live.discard(self)
        if self.future is not None:
            self.future.set_result(self.outcome)

    def _begin(self) -> None:
        if self.ahead:
            self.ahead = False
            trace.again(self.call)

    def fail(self, failure: NbparError) -> None:
        """Let the future raise. The operation itself goes on until the group is drained."""
        self.failure = failure
        if self.future is not None and not self.future.done():
            self.future._set_unwrap_func(raise_failure)
            self.future.set_result([Failure(failure)])

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Until the operation is done. Raises PeerFailed after `abort`, TimeoutError after `timeout`, and CollectiveMismatch."""
        if self.done:
            return True
        self._begin()
        if soon(self.poll):
            return True
        trace.waiting = self.call
        try:
            wait_until(self.poll, self.nbytes, timeout.total_seconds() if timeout else 0.0)
        finally:
            trace.waiting = None
        return True

    def is_completed(self) -> bool:
        return self.failure is not None or self.poll()

    def is_success(self) -> bool:
        return self.failure is None and self.poll()

    def exception(self) -> BaseException | None:
        return self.failure

    def synchronize(self) -> None:
        self.wait()

    def result(self) -> list[Any]:
        return self.outcome

    def source_rank(self) -> int:
        return self.source

    _source_rank = source_rank

    def get_future(self) -> Future[Any]:
        """A future that completes by itself. An operation that all ranks have started is done when this returns.

        Where MPI may be called by one thread only, any operation is.
        """
        if self.future is None:
            try:
                wait_until(self.poll, timeout=PROMPT + self.nbytes / SLOW if state.threaded else 0.0)
            except TimeoutError:
                pass
            with self.lock:
                self.future = Future()
                if self.done:
                    self.future.set_result(self.outcome)
            if not self.done:
                from .progress import progress

                progress.watch(self)
        return self.future


class Together(MPIWork):
    """Several works as one."""

    def __init__(self, group: Group, works: Sequence[MPIWork]) -> None:
        self.works = works
        nbytes = sum(work.nbytes for work in works)
        super().__init__(group, works[-1].call, [], [part for work in works for part in work.outcome], nbytes=nbytes)
        self.test = self._test_works

    def _test_works(self) -> bool:
        done = [work.poll() for work in self.works]
        return all(done)


class Done(Work):
    """The work of an operation that was over before anyone could ask."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    is_completed = is_success = wait

    def exception(self) -> None:
        return None

    def synchronize(self) -> None:
        return None

    def result(self) -> list[Any]:
        return []

    def get_future(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result([])
        return future


DONE = Done()


class Failure(Tensor):
    """A failed future's value. Python's waiters raise it; C++ takes it for a tensor, and its first use there raises."""

    failure: NbparError

    @staticmethod
    def __new__(cls, failure: NbparError) -> Failure:
        tensor: Failure = torch.Tensor._make_wrapper_subclass(cls, (0,))
        tensor.failure = failure
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise next(arg.failure for arg in args if isinstance(arg, cls))


def raise_failure(value: list[Any]) -> None:
    for part in value:
        if isinstance(part, Failure):
            raise part.failure
