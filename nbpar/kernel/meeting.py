"""How the processes that one launcher started find the kernel that the first of them hosts.

A file beside Jupyter's connection file, which all of them were told of, and as private: it leads to the kernel and holds the
world's key. It is there only while the ranks start.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nbpar.ranks.guard import KERNEL

PATIENCE = 300.0  # seconds that a process waits for the kernel
PERIOD = 0.02


class Meeting:
    """connection_file: the kernel's, seen by all processes of the job under this name."""

    def __init__(self, connection_file: str) -> None:
        self._path = Path(f"{os.path.abspath(connection_file)}.ranks")

    def open(self, environment: Mapping[str, str]) -> None:
        """Tells the processes that wait what they need as ranks."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(dict(environment)))
        draft.replace(self._path)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    def look(self) -> dict[str, str] | None:
        """What `open` was given. Not what a kernel left behind that was killed while its ranks started."""
        try:
            environment: dict[str, str] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        host, _, pid = environment[KERNEL].partition(":")
        if host == os.uname().nodename and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            return None
        return environment

    def wait(self, hope: Callable[[], bool]) -> dict[str, str] | None:
        """What `open` was given; None if there is no hope left, the launcher has ended or time is up."""
        launcher, end = os.getppid(), time.monotonic() + PATIENCE
        while (environment := self.look()) is None:
            if not hope() or os.getppid() != launcher or time.monotonic() > end:
                return None
            time.sleep(PERIOD)
        return environment
