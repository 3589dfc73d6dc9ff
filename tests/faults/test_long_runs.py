"""Many cells, many failures, many restarts: nothing grows beyond a stated constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.common import DIST, works
from tests.notebook import Notebook

GROWTH = {"memory": 24 << 20, "descriptors": 4, "threads": 1, "shared": 2}  # of any one process


def usage(notebook: Notebook) -> dict[str, list[int]]:
    """Of the kernel and each rank, by kind."""
    pids = [notebook.manager.provisioner.pid, *notebook.value("nbpar.world().pids")]  # type: ignore[union-attr,attr-defined]
    processes = [psutil.Process(pid) for pid in pids]
    return {
        "memory": [process.memory_info().rss for process in processes],
        "descriptors": [process.num_fds() for process in processes],
        "threads": [process.num_threads() for process in processes],
        "shared": [len(list(Path("/dev/shm").iterdir()))],
    }


def compare(before: dict[str, list[int]], after: dict[str, list[int]]) -> None:
    for kind, most in GROWTH.items():
        grown = [b - a for a, b in zip(before[kind], after[kind], strict=True)]
        assert max(grown) <= most, f"{kind} of kernel and ranks grew by {grown}"


def repeat(notebook: Notebook, times: int, code: str, expect: str = "ok") -> None:
    loop = f"""
from IPython.utils.capture import capture_output
for i in range({times}):
    with capture_output():
        try:
            nbpar.world().run({code!r}, quiet=True); end = "ok"
        except Exception as error:
            end = type(error).__name__
    assert end == {expect!r}, end
"""
    notebook.run(loop, timeout=300)


@pytest.mark.timeout(400)
def test_a_thousand_cells(notebook: Notebook) -> None:
    notebook.run("import torch\nx = torch.zeros(1000)\nlog = []")
    code = "import torch.distributed as dist\nx += 1\ndist.all_reduce(x)\nlog[:] = [i]\nprint('step', i)\ny = x.sum()"
    repeat(notebook, 100, code)
    before = usage(notebook)
    repeat(notebook, 1000, code)
    compare(before, usage(notebook))


@pytest.mark.timeout(400)
def test_two_hundred_failed_cells(notebook: Notebook) -> None:
    code = f"{DIST.partition(chr(10))[2]}if dist.get_rank():\n    raise ValueError\ndist.all_reduce(torch.ones(1000))"
    repeat(notebook, 20, code, "CellError")
    before = usage(notebook)
    repeat(notebook, 200, code, "CellError")
    compare(before, usage(notebook))
    works(notebook)


@pytest.mark.timeout(600)
def test_fifty_restarts(notebook: Notebook) -> None:
    notebook.run("%parallel restart")
    before = usage(notebook)
    for _ in range(5):
        notebook.run("for i in range(10):\n    nbpar.world().restart()", timeout=300)
        works(notebook)
    after = usage(notebook)
    kernel: dict[str, Any] = {kind: values[:1] for kind, values in before.items()}
    compare(kernel, {kind: values[:1] for kind, values in after.items()})


def test_eight_ranks_on_few_cores() -> None:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 8")
        assert notebook.run(f"{DIST}x = torch.ones(2); dist.all_reduce(x); print(x.tolist())").said == {"[8.0, 8.0]"}
