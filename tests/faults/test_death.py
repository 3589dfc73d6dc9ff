"""Ranks that die."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from nbpar.ranks import guard
from nbpar.ranks.channel import Message
from nbpar.ranks.world import Settings, World
from tests.faults.common import DIST, SUM, family, gone, works
from tests.limits import can_limit, limited
from tests.notebook import Notebook

FAULT = """if dist.get_rank() == 1:
    print('last words')
    time.sleep(0.3)
    print('died at', time.time())
    time.sleep(0.05)
    {act}
dist.barrier()"""
DEATHS = {
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "os._exit(3)": "exit code 3",
    "__import__('ctypes').string_at(0)": "killed by SIGSEGV",
}


@pytest.mark.parametrize("act", DEATHS)
def test_a_rank_dies(notebook: Notebook, act: str) -> None:
    notebook.run("kept = {'answer': 42}\nmodel = __import__('torch').nn.Linear(2, 2)")
    cell = notebook.run(DIST + FAULT.format(act=act), fails=True)
    died = float(cell.stdout.partition("died at ")[2].split()[0])
    assert time.time() - died < 2 and cell.error == "RankDied"
    assert "rank 1 (process" in cell.traceback and DEATHS[act] in cell.traceback and "died at" in cell.traceback
    assert len(cell.traceback.splitlines()) == 1
    assert notebook.run("%%parallel\nprint(kept['answer'], sum(p.numel() for p in model.parameters()))").said == {"42 6"}
    works(notebook)


def test_a_rank_dies_between_two_cells(notebook: Notebook) -> None:
    works(notebook)
    os.kill(notebook.value("nbpar.world().pids")[0], signal.SIGKILL)
    time.sleep(1)
    cell = notebook.run(SUM)
    assert cell.said == {"[2.0, 2.0]"} and "killed by SIGKILL" in cell.notes[0]


LAUNCHER = "nbpar.world()._launcher.pid"


@pytest.mark.parametrize("busy", ["while True: pass", "if dist.get_rank(): dist.barrier()\nelse: time.sleep(1000)"])
def test_the_launcher_is_killed_while_a_cell_runs(notebook: Notebook, busy: str) -> None:
    works(notebook)
    launcher, ranks = notebook.value(LAUNCHER), family(notebook.value("nbpar.world().pids"))
    notebook.run("kept = [1, 2]")
    message = notebook.send_until(f"{DIST}print('begun', flush=True)\n{busy}")
    at = time.monotonic()
    os.kill(launcher, signal.SIGKILL)
    cell = notebook.collect(message, 20)
    assert time.monotonic() - at < 2 and cell.error == "RankDied"
    assert "launcher" in cell.traceback and "killed by SIGKILL" in cell.traceback
    assert gone(ranks, 5)
    assert notebook.run("%%parallel\nprint(kept)").said == {"[1, 2]"}
    works(notebook)


def test_the_launcher_is_killed_between_two_cells(notebook: Notebook) -> None:
    works(notebook)
    ranks = family(notebook.value("nbpar.world().pids"))
    os.kill(notebook.value(LAUNCHER), signal.SIGKILL)
    assert gone(ranks, 5)
    cell = notebook.run(SUM)
    assert cell.said == {"[2.0, 2.0]"} and "launcher" in cell.notes[0] and "killed by SIGKILL" in cell.notes[0]


def test_want_of_memory_is_named_with_its_amount() -> None:
    """As a guard reports it."""
    world = World(Settings(size=2), {})
    world.facts = [{"host": "here", "pid": 11}, {"host": "here", "pid": 12}]
    world.memory, world.produced = {0: 1 << 29, 1: 1 << 30}, {0: 0, 1: 0}
    for piece in ("epoch 2\nepo", "ch", " 3", "\n"):
        world.note_output(Message("output", [("stdout", piece)], role="side", rank=1))
    report = Message("exit", {"code": -signal.SIGKILL, "peak": 5 << 29, "out_of_memory": True}, role="guard", rank=1)
    death = world._fell(report)
    assert (death.rank, death.host) == (1, "here")
    assert str(death).startswith(
        "rank 1 (process 12 on here) ended: killed by SIGKILL because memory ran out (rank 0 held 0.5 GiB, rank 1 held 2.5 GiB). "
        "Its last line of output: 'epoch 3'."
    )


@pytest.mark.skipif(not can_limit(), reason="control groups cannot be made here")
def test_a_rank_is_killed_for_want_of_memory(notebook: Notebook) -> None:
    """By the system: its control group may have 64 MiB more, and it asks for 4 GiB."""
    works(notebook)
    notebook.run("kept = [1, 2]")
    pid = notebook.value("nbpar.world().pids")[1]
    with limited(pid, 64 << 20) as group:
        group.write_text(str(pid))
        ask = "print('asks for more', flush=True)\ntime.sleep(2)\n"  # so that all ranks have said what they hold
        take = "x = torch.ones(1 << 30) if dist.get_rank() else 0\ndist.barrier()"
        cell = notebook.run(DIST + ask + take, fails=True)
    assert cell.error == "RankDied" and "rank 1 (process" in cell.traceback, cell
    assert re.search(r"killed by SIGKILL because memory ran out \(rank 0 held [\d.]+ GiB, rank 1 held [\d.]+ GiB\)", cell.traceback)
    assert "'asks for more'" in cell.traceback
    assert notebook.run("%%parallel\nprint(kept)").said == {"[1, 2]"}
    works(notebook)


def test_a_guard_reads_what_the_system_killed_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("vmstat", "oom_kill 3\nother 7\n"), ("events", "low 0\noom 4\noom_kill 2\noom_group_kill 9\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(guard, "MEMORY_RECORDS", (str(tmp_path / "vmstat"), str(tmp_path / "events"), str(tmp_path / "none")))
    assert guard.out_of_memory_kills() == 5
