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
