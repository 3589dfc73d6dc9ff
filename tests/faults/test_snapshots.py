"""A long lockstep cell keeps snapshots: when a rank dies the notebook has the last one."""

from __future__ import annotations

import time

from tests.faults.common import works
from tests.notebook import Notebook

SETUP = """import torch, time
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)).double()
opt = torch.optim.Adam(model.parameters(), lr=0.01)
x, y = torch.randn(64, 4).double(), torch.randn(64, 1).double()
seen = []
"""
LOOP = """
for step in range({steps}):
    opt.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    seen.append(step)
    opt.step()
    {then}
"""
DIE = "time.sleep(0.005)\n    if step == 400 and nbpar.rank() == 1: __import__('os').kill(__import__('os').getpid(), 9)"


def test_the_last_snapshot_is_what_one_process_had_at_that_step(notebook: Notebook) -> None:
    notebook.run(SETUP)
    cell = notebook.run("%%parallel data --snapshot 0.5" + LOOP.format(steps=1000, then=DIE), fails=True)
    assert cell.error == "RankDied"
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    assert 0 < step <= 401
    assert notebook.value("(len(seen), opt.state[model[0].weight]['step'].item())") == (step, step)
    notebook.run("trained, random = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()")
    notebook.run(SETUP + LOOP.format(steps=step, then="pass"))
    assert notebook.value("max((a - b).abs().max().item() for a, b in zip(trained, model.parameters()))") < 1e-12
    assert notebook.value("torch.equal(random, torch.get_rng_state())")
    works(notebook)


def test_without_snapshots_nothing_of_the_cell_is_kept(notebook: Notebook) -> None:
    notebook.run(SETUP)
    notebook.run("%%parallel data --snapshot off" + LOOP.format(steps=1000, then=DIE), fails=True)
    assert notebook.value("seen") == []


def test_snapshots_do_not_change_a_cell_and_an_interrupt_comes_through(notebook: Notebook) -> None:
    notebook.run(SETUP + LOOP.format(steps=200, then="pass") + "alone = [p.detach().clone() for p in model.parameters()]")
    notebook.run(SETUP)
    notebook.run("%%parallel data --snapshot 0.05" + LOOP.format(steps=200, then="time.sleep(0.005)"))
    assert notebook.value("max((a - b).abs().max().item() for a, b in zip(alone, model.parameters()))") < 1e-12
    notebook.run(SETUP)
    message = notebook.send("%%parallel data --snapshot 0.05" + LOOP.format(steps=100_000, then="time.sleep(0.002)"))
    time.sleep(2)
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and "as they were before" not in cell.traceback
    assert notebook.value("len(seen)") > 20
