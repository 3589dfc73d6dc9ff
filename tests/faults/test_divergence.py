"""Ranks of a lockstep cell that take different branches: found at the next collective, both lines named, nothing kept."""

from __future__ import annotations

import re
import time

import pytest

from tests.faults.common import works
from tests.notebook import Cell, Notebook

SETUP = """import torch, time, random, os
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.01)
inputs, y, small = torch.randn(64, 4), torch.randn(64, 1), torch.randn(6, 4)
def step():
    opt.zero_grad()
    ((model(inputs) - y) ** 2).mean().backward()
    opt.step()
class Thing:
    def __init__(self, rows):
        self.rows = rows
"""
BRANCHES = {
    "time": """
step()
end = time.time() + 0.05 * (1 + os.getpid() % 2 + random.SystemRandom().random())
while time.time() < end:
    step()
model(small).sum().item()""",
    "unseeded": """
for turn in range(60):
    if random.Random().random() < 0.5:
        step()
    else:
        model(inputs[:40]).sum().item()""",
    "shape": """
rows = 20 + random.SystemRandom().randrange(40)
for turn in range(9):
    model(inputs[:rows - turn]).sum().item()
    rows = 20 + random.SystemRandom().randrange(40)""",
    "order": """
for turn in range(9):
    things = [Thing(rows) for rows in range(10, 20)]
    things.sort(key=lambda thing: hash((id(thing), os.getpid())))
    for thing in things:
        model(inputs[:thing.rows]).sum().item()""",
    "leaves": """
step()
if random.SystemRandom().getrandbits(1) == os.getpid() % 2:
    step()
for turn in range(30):
    if random.SystemRandom().random() < 0.2:
        break
    step()""",
}


def part_ways(notebook: Notebook, mode: str, branch: str) -> tuple[Cell, float]:
    """How such a cell ended and after how many seconds; in any case nothing of it is kept, and the ranks go on."""
    notebook.run(SETUP)
    notebook.run(f"%%parallel {mode}\nstep(); model(small).sum().item()")  # checks of the mode are over
    works(notebook)
    pids = notebook.value("nbpar.world().pids")
    for _ in range(5):  # by chance they may go the same way
        notebook.run("before = [p.detach().clone() for p in model.parameters()]")
        began = time.monotonic()
        cell = notebook.run(f"%%parallel {mode}{BRANCHES[branch]}", fails=True)
        seconds = time.monotonic() - began
        if cell.error:
            break
    assert notebook.value("all(torch.equal(a, b) for a, b in zip(before, model.parameters()))")
    works(notebook, pids)
    assert notebook.run(f"%%parallel {mode}\nstep()").status == "ok"
    return cell, seconds


@pytest.mark.parametrize("branch", BRANCHES)
def test_ranks_that_part_ways_are_told_so(notebook: Notebook, branch: str) -> None:
    cell, seconds = part_ways(notebook, "data", branch)
    assert cell.error == "CollectiveMismatch" and seconds < 8, cell
    assert len(re.findall(r"rank \d was (?:in .* line \d+|.*at the end of the cell)", cell.traceback)) == 2, cell.traceback
    assert "as they were before the cell" in cell.traceback


@pytest.mark.parametrize("branch", BRANCHES)
def test_stages_that_part_ways_are_told_so(notebook: Notebook, branch: str) -> None:
    """At the next message or collective; where each waits for another one of the other, a look or two later."""
    cell, seconds = part_ways(notebook, "model", branch)
    assert cell.error == "CollectiveMismatch" and seconds < 8, cell
    lines = re.findall(r"rank \d (?:was|waits) (?:in .* line \d+|.*at the end of the cell)", cell.traceback)
    assert len(lines) == 2, cell.traceback
    assert "as they were before the cell" in cell.traceback


def test_a_branch_without_a_message_is_found_at_the_next_one(notebook: Notebook) -> None:
    """One rank computes what only it holds once more; messages still fit, but they are of another moment."""
    notebook.run(SETUP)
    code = """%%parallel model
hidden = model[0](inputs)
if os.getpid() % 2 == {odd}:
    hidden = hidden + hidden
print(model[2](hidden).sum().item())"""
    pids = notebook.value("nbpar.world().pids")
    if pids[0] % 2 == pids[1] % 2:
        notebook.run("%parallel restart")
        pids = notebook.value("nbpar.world().pids")
    for odd in (0, 1) if pids[0] % 2 != pids[1] % 2 else ():
        cell = notebook.run(code.format(odd=odd), fails=True)
        assert cell.error == "CollectiveMismatch" and "operations" in cell.traceback, cell


def test_a_rank_that_asks_who_it_is_may_call_from_a_line_of_its_own(notebook: Notebook) -> None:
    notebook.run(SETUP)
    code = """%%parallel data
import torch.distributed as dist
step()
if dist.get_rank() == 0:
    told = torch.ones(3)
    dist.broadcast(told, 0)
else:
    told = torch.zeros(3)
    dist.broadcast(told, 0)
print(told.tolist())"""
    assert notebook.run(code).said == {"[1.0, 1.0, 1.0]"}


def test_ranks_that_are_not_in_lockstep_are_left_alone(notebook: Notebook) -> None:
    code = """%%parallel
import torch, torch.distributed as dist
x = torch.ones(2)
if dist.get_rank() == 0:
    dist.all_reduce(x)
else:
    dist.all_reduce(x)
print(x.tolist())"""
    assert notebook.run(code).said == {"[2.0, 2.0]"}
