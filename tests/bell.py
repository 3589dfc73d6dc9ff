"""What the kernel does in a world whose ranks a test starts without one."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import torch.distributed as dist

from nbpar import comm


class Bell:
    """When some ranks fail and the others go on, it ends all waits.

    The ranks tell each other by files: `failed` as soon as a cell fails, `end` when a rank is out of the cell.
    """

    number = 0

    def __enter__(self) -> Bell:
        Bell.number += 1
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.stem = Path(tempfile.gettempdir(), f"nbpar-{os.getppid()}-{Bell.number}")
        self.done, self.stopped = threading.Event(), False
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self._write("end", "stopped" if self.stopped else "")
        while len(ends := self._all("end")) < self.size:
            time.sleep(0.01)
        if any(end.read_text() for end in ends):
            comm.renew()
        dist.barrier()
        for what in ("failed", "end"):
            self._file(what, self.rank).unlink(missing_ok=True)

    def ring(self, error: BaseException) -> None:
        comm.watch(False)
        self._write("failed", f"a rank failed: {error}")

    def _file(self, what: str, rank: int | str) -> Path:
        return self.stem.with_name(f"{self.stem.name}-{what}-{rank}")

    def _all(self, what: str) -> list[Path]:
        return list(self.stem.parent.glob(self._file(what, "*").name))

    def _write(self, what: str, text: str) -> None:
        made = self._file(f"new-{what}", self.rank)
        made.write_text(text)
        made.replace(self._file(what, self.rank))

    def _listen(self) -> None:
        since = 0.0
        while not self.done.wait(0.1):
            failed = self._all("failed")
            since = since + 0.1 if failed and (len(failed) < self.size or self._all("end")) else 0.0
            if since > 2:
                self.stopped = True
                comm.abort(failed[0].read_text())
                return
