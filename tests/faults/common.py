"""What the tests of faults share."""

from __future__ import annotations

import time

from tests.notebook import Notebook

DIST = "%%parallel\nimport time, os, signal, torch, torch.distributed as dist\n"
SUM = f"{DIST}x = torch.ones(2); dist.all_reduce(x); print(x.tolist())"


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def family(pids: list[int]) -> list[int]:
    """The ranks and their guards."""
    found = list(pids)
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            guard = int(stat.read().rpartition(")")[2].split()[1])
        with open(f"/proc/{guard}/cmdline") as line:
            assert "nbpar" in line.read()
        found.append(guard)
    return found


def gone(pids: list[int], within: float) -> bool:
    end = time.monotonic() + within
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def works(notebook: Notebook, pids: list[int] | None = None) -> None:
    assert notebook.run(SUM).said == {"[2.0, 2.0]"}
    if pids is not None:
        assert notebook.value("nbpar.world().pids") == pids, "on the same processes"
