"""The kernel ends, in whatever way; restarts; two notebooks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.common import DIST, family, gone, works
from tests.notebook import Notebook

ASLEEP = 60.0  # seconds


@dataclass(frozen=True)
class Asleep:
    """stopped: notebooks, with their ranks and the message of a cell that runs; since: when they were stopped."""

    stopped: list[tuple[Notebook, list[int], str]]
    since: float

    def signal(self, number: int) -> None:
        """To the kernels."""
        for notebook, _, _ in self.stopped:
            os.kill(notebook.manager.provisioner.pid, number)  # type: ignore[union-attr,attr-defined]


@pytest.fixture(scope="module", autouse=True)
def asleep() -> Iterator[Asleep]:
    """Notebooks whose kernels sleep while the other tests run, as when the lid of a laptop is closed: one between two cells, one in
    a cell that goes on for longer."""
    with Notebook() as idle, Notebook() as busy:
        stopped = []
        for notebook in (idle, busy):
            notebook.run("%parallel start -n 2")
            works(notebook)
            pids = notebook.value("nbpar.world().pids")
            message = notebook.send(f"{DIST}time.sleep({ASLEEP + 5})\nprint('slept')") if notebook is busy else ""
            stopped.append((notebook, pids, message))
        time.sleep(0.5)
        sleepers = Asleep(stopped, time.monotonic())
        sleepers.signal(signal.SIGSTOP)
        try:
            yield sleepers
        finally:
            sleepers.signal(signal.SIGCONT)


@pytest.mark.parametrize("busy", ["", "while True: pass", "if dist.get_rank(): dist.barrier()\nelse: time.sleep(1000)"])
def test_the_kernel_is_killed(fresh: Notebook, busy: str) -> None:
    works(fresh)
    pids = family(fresh.value("nbpar.world().pids"))
    if busy:
        fresh.send_until(f"{DIST}print('begun', flush=True)\n{busy}")
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


def test_kernels_that_were_asleep_find_their_worlds(asleep: Asleep) -> None:
    """The last test of this module: the others run while they sleep."""
    time.sleep(max(0.0, asleep.since + ASLEEP - time.monotonic()))
    asleep.signal(signal.SIGCONT)
    for notebook, pids, message in asleep.stopped:
        if message:
            assert notebook.collect(message, 60).said == {"slept"}
        works(notebook, pids)
