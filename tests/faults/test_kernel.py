"""The kernel ends, in whatever way; restarts; two notebooks."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.common import DIST, family, gone, works
from tests.notebook import Notebook


@pytest.mark.parametrize(
    "busy", ["", "while True: pass", "time.sleep(1000)", "if dist.get_rank(): dist.barrier()\nelse: time.sleep(1000)"]
)
def test_the_kernel_is_killed(fresh: Notebook, busy: str) -> None:
    works(fresh)
    pids = family(fresh.value("nbpar.world().pids"))
    if busy:
        fresh.send(DIST + busy)
        time.sleep(0.7)
    os.kill(fresh.manager.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr,attr-defined]
    assert gone(pids, 5)


@pytest.mark.parametrize("busy", ["", "for turn in range(130):\n    time.sleep(0.1)\nprint('slept')"])
def test_a_kernel_that_was_asleep_finds_its_world(fresh: Notebook, busy: str) -> None:
    """As when the lid of a laptop is closed for a while."""
    works(fresh)
    pids = fresh.value("nbpar.world().pids")
    kernel: int = fresh.manager.provisioner.pid  # type: ignore[union-attr,attr-defined]
    message = fresh.send(DIST + busy) if busy else ""
    time.sleep(0.5)
    os.kill(kernel, signal.SIGSTOP)
    time.sleep(10)
    os.kill(kernel, signal.SIGCONT)
    if busy:
        assert fresh.collect(message, 60).said == {"slept"}
    works(fresh, pids)


def test_stop_unload_and_the_kernels_end_leave_nothing(fresh: Notebook) -> None:
    pids = family(fresh.value("nbpar.world().pids"))
    fresh.run("%parallel stop")
    assert gone(pids, 0.5) and "no ranks" in fresh.run("%parallel status").stdout
    works(fresh)
    pids = family(fresh.value("nbpar.world().pids"))
    fresh.run("%unload_ext nbpar")
    assert gone(pids, 0.5)
    fresh.run("%load_ext nbpar")
    works(fresh)
    pids = family(fresh.value("nbpar.world().pids"))
    fresh.manager.shutdown_kernel(now=False)
    assert gone(pids, 5)


def test_two_notebooks_do_not_disturb_each_other(notebook: Notebook, fresh: Notebook) -> None:
    works(notebook)
    pids = notebook.value("nbpar.world().pids")
    fresh.run(f"{DIST}os._exit(1)", fails=True)
    fresh.run("%parallel stop")
    works(notebook, pids)


def test_restart_gives_fresh_processes_and_the_same_variables(notebook: Notebook) -> None:
    works(notebook)
    pids = notebook.value("nbpar.world().pids")
    notebook.run("a = [1, 2]\nb = a")
    notebook.run("%%parallel\na.append(3)")
    notebook.run("%parallel restart")
    assert not set(pids) & set(notebook.value("nbpar.world().pids"))
    assert notebook.run("%%parallel\nprint(a, b is a)").said == {"[1, 2, 3] True"}
