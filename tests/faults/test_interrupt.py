"""Interrupts: of what, how soon, and what is kept."""

from __future__ import annotations

import re
import time

import pytest

from tests.faults.common import DIST, works
from tests.notebook import Cell, Notebook

BEGINS = "print('begun', flush=True)\ntime.sleep(0.2)\n"  # what is printed has left before something keeps the interpreter


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "time.sleep(1000)",
        "!sleep 1000",
        "import re; re.match('(a+)+b', 'a' * 60)",
        "import ctypes; ctypes.PyDLL(None).sleep(1000)",
        "from mpi4py import MPI; MPI.COMM_WORLD.recv()",
        "if dist.get_rank(): time.sleep(1000)\ndist.all_reduce(torch.ones(3))",
        "if not dist.get_rank(): dist.recv(torch.ones(3), 1)\nwhile True: torch.ones(1000, 1000) @ torch.ones(1000, 1000)",
    ],
)
def test_an_interrupt_ends_the_cell(notebook: Notebook, code: str) -> None:
    pids = notebook.value("nbpar.world().pids")
    message = notebook.send_until(f"{DIST}{BEGINS}{code}")
    time.sleep(0.5)
    at = time.monotonic()
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and time.monotonic() - at < 1.5
    assert shows_the_cell_alone(cell) or code[0] == "!"  # whose traceback IPython does not show
    works(notebook, pids)


def shows_the_cell_alone(cell: Cell) -> bool:
    """Whether the traceback has its lines, and none of nbpar's and torch's."""
    return "Cell In" in cell.traceback and "/nbpar/" not in cell.traceback and "/torch/" not in cell.traceback


C_CALL = """
from collections import deque
from itertools import repeat
def count(turns):  # in C, without a look at anything
    began = time.perf_counter()
    deque(repeat(None, int(turns)), maxlen=0)
    return turns / (time.perf_counter() - began)
"""


def test_a_long_c_call_ends_as_soon_as_it_returns(notebook: Notebook) -> None:
    pids = notebook.value("nbpar.world().pids")
    begins = "rate = count(1e7)\nprint('began at', time.time(), flush=True)\ntime.sleep(0.2)\n"
    code = f"{DIST}{C_CALL}{begins}count(3 * rate)\ntime.sleep(1000)"
    message = notebook.send_until(code, "began at")
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    began = max(map(float, re.findall(r"began at ([\d.]+)", cell.stdout)))
    assert cell.error == "KeyboardInterrupt" and time.time() - began < 12
    works(notebook, pids)


def test_a_c_call_that_does_not_return_is_told_and_ended_on_demand(notebook: Notebook) -> None:
    notebook.run("kept = 42")
    message = notebook.send_until(f"{DIST}{C_CALL}{BEGINS}if dist.get_rank():\n    count(1e13)\ndist.barrier()")
    time.sleep(1)
    notebook.interrupt()
    time.sleep(5.5)
    notebook.interrupt()
    at = time.monotonic()
    cell = notebook.collect(message, 20)
    assert "rank 1: in a C call" in cell.stdout and "%parallel restart" in cell.stdout
    assert cell.error == "KeyboardInterrupt" and time.monotonic() - at < 4
    assert "rank 1 did not stop and were ended" in cell.traceback and "/nbpar/" not in cell.traceback
    assert notebook.run("%%parallel\nprint(kept)").said == {"42"}
    works(notebook)


def test_an_interrupt_between_cells_does_no_harm(notebook: Notebook) -> None:
    """The cell runs or fails visibly. That ipykernel itself drops a cell without a reply happens to plain cells as well."""
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02) * 4:
        message = notebook.send("%%parallel\nprint('ran')")
        time.sleep(delay)
        notebook.interrupt()
        cell = notebook.collect(message, 20, reply=False)
        assert "ran" in cell.stdout or cell.error == "KeyboardInterrupt" or not notebook.replied(message)
    works(notebook)


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
    if done == 40: print("40 done", flush=True)
    time.sleep(0.003)"""


def test_an_interrupted_training_stops_at_one_step_and_keeps_it(notebook: Notebook) -> None:
    notebook.run(TRAIN)
    notebook.run(LOOP.replace("100_000", "3"))  # imports and checks
    message = notebook.send_until(LOOP, "40 done")
    at = time.monotonic()
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and time.monotonic() - at < 1.5
    assert "as they were before" not in cell.traceback and shows_the_cell_alone(cell) and "opt.step()" in cell.traceback
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


SLOW = """
class Slow(torch.nn.Linear):
    def forward(self, x):
        print("begun", flush=True)
        time.sleep(1000)
slow = torch.nn.Sequential(torch.nn.Linear(4, 4), Slow(4, 4))
"""


@pytest.mark.parametrize("mode", ["data", "model", "model --how tensor"])
def test_an_interrupt_inside_a_model_shows_the_cells_lines(notebook: Notebook, mode: str) -> None:
    notebook.run(TRAIN + SLOW)
    message = notebook.send_until(f"%%parallel {mode}\nslow(x)")
    for _ in range(2):  # the second one does not wait for a step
        notebook.interrupt()
        time.sleep(0.3)
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and shows_the_cell_alone(cell), cell
    assert "slow(x)" in cell.traceback and "time.sleep(1000)" in cell.traceback
    works(notebook)


def test_an_interrupt_does_not_leave_half_an_import(notebook: Notebook) -> None:
    """Of what torch imports at its first step; with a module of that name, whose import takes a while."""
    notebook.run("%parallel restart")
    code = """%%parallel
import sys, types, time
module = sys.modules["torch._dynamo"] = types.ModuleType("torch._dynamo")
module.__spec__ = types.SimpleNamespace(_initializing=True)
print("imports", flush=True)
end = time.monotonic() + 2
while time.monotonic() < end: pass
print("imported", flush=True)
module.__spec__._initializing = False
time.sleep(1000)"""
    message = notebook.send_until(code, "imports")
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and cell.said == {"imports", "imported"}
    notebook.run("%parallel restart")
