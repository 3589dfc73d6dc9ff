"""A started operation: what torch calls a Work, around MPI requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from mpi4py import MPI
from torch.futures import Future

from ..errors import PeerFailed
from .trace import BYTES, END, Record, now, trace
from .waiting import SLOW, wait_until

if TYPE_CHECKING:
    from .group import MPIGroup

Requests = list[MPI.Request]
test_all: Callable[[Requests], bool] = MPI.Request.Testall


class MPIWork(dist.Work):  # type: ignore[misc,name-defined]
    """keep: buffers that MPI reads or writes until the requests are done. finish: brings what arrived to the result."""

    def __init__(
        self,
        group: MPIGroup,
        record: Record,
        requests: Requests,
        result: list[Any],
        finish: Callable[[], None] | None = None,
        keep: Any = None,
    ) -> None:
        super().__init__()
        self.group, self.record, self.requests = group, record, requests
        self.outcome, self.finish, self.keep = result, finish, keep
        self.done = False
        self.source = -1
        self.failure: BaseException | None = None
        self.future: Future[Any] | None = None
        self.lock: threading.Lock | None = None  # there is one once two threads may test the requests
        self.test: Callable[[], bool] = self.requests[0].Test if len(requests) == 1 else self._test_all
        group.live.add(self)

    def _test_all(self) -> bool:
        return test_all(self.requests)

    def poll(self) -> bool:
        """Whether the operation is done; brings it to its end if MPI says so."""
        if self.done:
            return True
        if self.lock is None:
            if self.test():
                self._complete()
            return self.done
        if self.lock.acquire(blocking=False):
            try:
                if not self.done and self.test():
                    self._complete()
            finally:
                self.lock.release()
        return self.done

    def _complete(self) -> None:
        if self.finish is not None:
            self.finish()
        self.record[END] = now()
        self.done = True
        self.finish = self.keep = None
        self.group.live.discard(self)
        if self.future is not None:
            self.future.set_result(self.outcome)

    def fail(self, failure: PeerFailed) -> None:
        """Give up on the operation: its future raises. The group keeps the requests and buffers until they are drained."""
        self.failure = failure
        if self.future is not None and not self.future.done():
            self.future._set_unwrap_func(_raise_failure)
            self.future.set_result(_Failure(failure))

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Until the operation is done. Raises PeerFailed after `abort`, TimeoutError after `timeout`."""
        if not self.done:
            trace.waiting = self.record
            wait_until(self.poll, self.record[BYTES], timeout.total_seconds() if timeout else 0.0)
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
        """A future that completes by itself: at once if the operation takes no longer than a prompt transfer."""
        if self.future is None:
            try:
                wait_until(self.poll, timeout=PROMPT + self.record[BYTES] / SLOW)
            except TimeoutError:
                pass
            self.future = Future()
            if self.done:
                self.future.set_result(self.outcome)
            else:
                from .progress import progress

                self.lock = threading.Lock()
                progress.watch(self)
        return self.future


PROMPT = 100e-6  # seconds beyond the transfer's own time before a future is handed to the progress thread


class _Failure:
    """A failed future's value. C++ waiters look for tensors in a value by pickling it: that, too, raises the failure."""

    def __init__(self, failure: PeerFailed) -> None:
        self.failure = failure

    def __reduce__(self) -> str:
        raise self.failure


def _raise_failure(value: Any) -> None:
    if isinstance(value, _Failure):
        raise value.failure
