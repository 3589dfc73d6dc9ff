"""Injected faults, real processes: how soon the notebook has control, what it says, and that the next cell works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.notebook import Notebook

DIST = "%%parallel\nimport time, os, signal, torch, torch.distributed as dist\n"
SUM = f"{DIST}x = torch.ones(2); dist.all_reduce(x); print(x.tolist())"


@pytest.fixture
def fresh() -> Iterator[Notebook]:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2")
        yield notebook


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
    assert notebook.run(SUM).lines == ["[2.0, 2.0]"]
    if pids is not None:
        assert notebook.value("nbpar.world().pids") == pids, "on the same processes"


@pytest.mark.parametrize(
    "wait",
    [
        "dist.all_reduce(torch.ones(3))",
        "dist.barrier()",
        "dist.recv(torch.ones(3), 1)",
        "dist.all_gather_object([None, None], 'x')",
        "ddp(torch.ones(2, 3)).sum().backward()",
    ],
)
def test_one_rank_raises_while_the_other_waits(notebook: Notebook, wait: str) -> None:
    pids = notebook.value("nbpar.world().pids")
    fault = "if dist.get_rank() == 1:\n    time.sleep(0.5)\n    print('raised at', time.time())\n    raise ValueError('boom')\n"
    setup = "ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))\n" if "ddp" in wait else "\n"
    code = DIST + setup + fault + wait
    cell = notebook.run(code, fails=True)
    raised = float(cell.stdout.partition("raised at ")[2].split()[0])
    assert time.time() - raised < 1.5 and cell.error == "CellError"
    assert "### rank 1 of 2" in cell.traceback and "ValueError: boom" in cell.traceback
    assert "rank 0 was waiting" in cell.traceback and "in line 8" in cell.traceback
    works(notebook, pids)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "time.sleep(1000)",
        "if dist.get_rank(): time.sleep(1000)\ndist.all_reduce(torch.ones(3))",
        "if not dist.get_rank(): dist.recv(torch.ones(3), 1)\nwhile True: torch.ones(1000, 1000) @ torch.ones(1000, 1000)",
    ],
)
def test_an_interrupt_ends_the_cell(notebook: Notebook, code: str) -> None:
    pids = notebook.value("nbpar.world().pids")
    message = notebook.send(DIST + code)
    time.sleep(1)
    at = time.monotonic()
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and time.monotonic() - at < 1.5
    works(notebook, pids)


def test_an_interrupt_between_cells_does_no_harm(notebook: Notebook) -> None:
    """The cell runs or fails visibly. That ipykernel itself drops a cell without a reply happens to plain cells as well."""
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02) * 4:
        message = notebook.send("%%parallel\nprint('ran')")
        time.sleep(delay)
        notebook.interrupt()
        cell = notebook.collect(message, 20, reply=False)
        assert "ran" in cell.stdout or cell.error == "KeyboardInterrupt" or not notebook.replied(message)
    works(notebook)


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
    assert notebook.run("%%parallel\nprint(kept['answer'], sum(p.numel() for p in model.parameters()))").lines == ["42 6"]
    works(notebook)


def test_a_rank_dies_between_two_cells(notebook: Notebook) -> None:
    works(notebook)
    os.kill(notebook.value("nbpar.world().pids")[0], signal.SIGKILL)
    time.sleep(1)
    cell = notebook.run(SUM)
    assert cell.lines == ["[2.0, 2.0]"] and "killed by SIGKILL" in cell.notes[0]


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
    assert notebook.run("%%parallel\nprint(a, b is a)").lines == ["[1, 2, 3] True"]


TRAIN = """import torch, time
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.01)
x, y = torch.randn(64, 4), torch.randn(64, 1)
done = 0
"""
LOOP = """%%parallel data
for step in range(100_000):
    opt.zero_grad()
    ((model(x) - y) ** 2).mean().backward()
    opt.step()
    done += 1
    time.sleep(0.003)"""


def test_an_interrupted_training_stops_at_one_step_and_keeps_it(notebook: Notebook) -> None:
    notebook.run(TRAIN)
    notebook.run(LOOP.replace("100_000", "3"))  # imports and checks
    message = notebook.send(LOOP)
    time.sleep(2)
    at = time.monotonic()
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and time.monotonic() - at < 1.5
    assert "as they were before" not in cell.traceback
    done = notebook.value("done")
    assert done > 30
    check = (
        "done_there = done\n"
        + TRAIN
        + LOOP.partition("\n")[2].replace("100_000", "done_there + 1").replace("time.sleep(0.003)", "pass")
    )
    notebook.run("trained = [p.detach().clone() for p in model.parameters()]")
    notebook.run(check)
    assert notebook.value("max((a - b).abs().max().item() for a, b in zip(trained, model.parameters()))") < 1e-5


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("if dist.get_rank(): dist.all_reduce(torch.ones(3))", "rank 0 has left the cell"),
        ("dist.all_reduce(torch.ones(2)) if dist.get_rank() else dist.recv(torch.ones(2), 1)", "rank 0 waits in recv #0"),
        ("dist.recv(torch.ones(3), 1 - dist.get_rank())", "rank 1 waits in recv #0 of 3, line 3"),
    ],
)
def test_ranks_that_wait_in_vain_are_told_apart(notebook: Notebook, code: str, says: str) -> None:
    works(notebook)
    pids = notebook.value("nbpar.world().pids")
    at = time.monotonic()
    cell = notebook.run(DIST + code, fails=True)
    assert cell.error == "CollectiveMismatch" and says in cell.traceback and time.monotonic() - at < 18
    works(notebook, pids)


def test_slow_ranks_are_left_alone(notebook: Notebook) -> None:
    cell = notebook.run(f"{DIST}if dist.get_rank(): time.sleep(14)\ndist.barrier()\nprint('done')")
    assert cell.lines == ["done"]


def test_where_shows_stacks_and_collectives(notebook: Notebook) -> None:
    message = notebook.send(f"{DIST}def deep():\n    time.sleep(3)\nif dist.get_rank(): deep()\ndist.barrier()")
    time.sleep(1.5)
    told = subprocess.run([sys.executable, "-m", "nbpar", "where"], capture_output=True, text=True, check=True).stdout
    notebook.collect(message)
    for pid in notebook.value("nbpar.world().pids"):
        assert f"process {pid}" in told
    assert "in deep" in told and "waits in barrier #0" in told
