"""Control groups of Linux: processes that together may take so much memory and no more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OLD = Path("/sys/fs/cgroup/memory").is_dir()  # control groups of the first version
GROUPS = Path("/sys/fs/cgroup/memory" if OLD else "/sys/fs/cgroup")
LIMIT = "memory.limit_in_bytes" if OLD else "memory.max"


def can_limit() -> bool:
    """Whether this user may make such groups here."""
    group = GROUPS / "nbpar-test"
    try:
        group.mkdir(exist_ok=True)
        (group / LIMIT).write_text(str(1 << 30))
        group.rmdir()
    except OSError:
        return False
    return True


@contextmanager
def limited(name: object, size: int) -> Iterator[Path]:
    """A group of at most `size` bytes, as the file to which ids of processes are written. They must end while it lasts."""
    group = GROUPS / f"nbpar-test-{name}"
    group.mkdir()
    try:
        (group / LIMIT).write_text(str(size))
        yield group / "cgroup.procs"
    finally:
        end = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        group.rmdir()
