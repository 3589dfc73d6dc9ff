"""One thread that completes futures: MPI moves data only while someone tests a request."""

from __future__ import annotations

import threading
import time

from .state import state
from .waiting import ended
from .work import MPIWork

BUSY = 200e-6  # seconds of polling without a pause after something happened
PAUSES = (20e-6, 200e-6)  # first and longest pause after that


class Progress:
    """Polls the works whose futures somebody waits for. The thread starts with the first and sleeps without any."""

    def __init__(self) -> None:
        self._works: list[MPIWork] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, work: MPIWork) -> None:
        """Complete the future of `work` when the operation is done, or fail it after `abort`."""
        with self._wake:
            self._works.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbpar-comm-progress", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._works:
                    self._wake.wait()
                works = list(self._works)
            self._poll(works)

    def _poll(self, works: list[MPIWork]) -> None:
        """Poll until one of the works is done, or the list has grown."""
        began, pause = time.perf_counter(), PAUSES[0]
        while len(works) == len(self._works):
            if state.reason is not None:
                for work in works:
                    work.fail(ended())
                return self._forget(works)
            done = [work for work in works if work.poll()]
            if done:
                return self._forget(done)
            if time.perf_counter() - began > BUSY:
                time.sleep(pause)
                pause = min(2 * pause, PAUSES[1])
        return None

    def forget_all(self) -> None:
        """Stop polling; waits for a poll in progress."""
        with self._wake:
            works, self._works = self._works, []
        for work in works:
            with work.lock:
                pass

    def _forget(self, works: list[MPIWork]) -> None:
        with self._wake:
            self._works = [work for work in self._works if work not in works]


progress = Progress()
