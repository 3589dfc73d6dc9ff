"""A long lockstep cell keeps snapshots: when a rank dies the notebook has the last one."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from nbpar.ranks import snapshots
from tests.faults.common import works
from tests.notebook import Notebook

SETUP = """import os, torch, time
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2)).double()
opt = torch.optim.Adam(model.parameters(), lr=0.01)
x, y = torch.randn(64, 4).double(), torch.randn(64, 1).double()
seen, begun = [], time.time()
def state():
    kept = [opt.state[p][name] for p in model.parameters() for name in ('exp_avg', 'exp_avg_sq', 'step')]
    return [t.detach().clone() for t in (*model.parameters(), *kept, loss, torch.get_rng_state().double())]
def apart(a, b):
    return max((one - other).abs().max().item() for one, other in zip(a, b, strict=True))
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
DIE = "time.sleep(0.005)\n    if step > 20 and time.time() > begun + 1.5 and nbpar.rank() == 1: os.kill(os.getpid(), 9)"


@pytest.mark.parametrize("mode", ["data", "model", "model --how tensor", "hybrid --mesh 2x2", "hybrid --mesh 2x2 --how tensor"])
def test_the_last_snapshot_is_what_one_process_had_at_that_step(notebook: Notebook, mode: str) -> None:
    notebook.run(SETUP)
    cell = notebook.run(f"%%parallel {mode} --snapshot 0.5" + LOOP.format(steps=100_000, then=DIE), fails=True)
    assert cell.error == "RankDied" and "killed by SIGKILL" in cell.traceback, cell
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    assert step > 0
    assert notebook.value("(len(seen), opt.state[model[0].weight]['step'].item(), model[3].bias.grad_fn)") == (step, step, None)
    notebook.run("there = state()")
    notebook.run(f"%%parallel {mode}" + LOOP.format(steps=3, then="pass"))
    notebook.run("after = state()\n" + SETUP + LOOP.format(steps=step, then="pass"))
    assert notebook.value("apart(there, state())") < 1e-12
    notebook.run(LOOP.format(steps=3, then="pass"))
    assert notebook.value("apart(after, state())") < 1e-12


def test_without_snapshots_nothing_of_the_cell_is_kept(notebook: Notebook) -> None:
    notebook.run(SETUP)
    notebook.run("%%parallel data -n 2 --snapshot off" + LOOP.format(steps=100_000, then=DIE), fails=True)
    assert notebook.value("seen") == []
    works(notebook)


@pytest.mark.parametrize("mode", ["data", "model", "model --how tensor"])
def test_snapshots_do_not_change_a_cell_and_an_interrupt_comes_through(notebook: Notebook, mode: str) -> None:
    notebook.run(SETUP + LOOP.format(steps=200, then="pass") + "alone = state()")
    notebook.run(SETUP)
    notebook.run(f"%%parallel {mode} -n 2 --snapshot 0.05" + LOOP.format(steps=200, then="time.sleep(0.002)"))
    assert notebook.value("apart(alone, state())") < 1e-12
    notebook.run(SETUP)
    message = notebook.send(f"%%parallel {mode} --snapshot 0.05" + LOOP.format(steps=100_000, then="time.sleep(0.002)"))
    time.sleep(2)
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and "as they were before" not in cell.traceback
    assert notebook.value("len(seen)") > 20


def test_a_model_that_stays_is_there_again_after_a_death(notebook: Notebook) -> None:
    """Its snapshot is in files: the next cell's ranks begin with it, and train on as one process does."""
    make = "\n" + "\n".join(SETUP.splitlines()[1:4])
    notebook.run(SETUP)
    notebook.run(f"%%parallel data --keep model,opt{make}" + LOOP.format(steps=2, then="pass"))
    assert notebook.value("type(model).__name__") == "RankRef"
    cell = notebook.run("%%parallel data --snapshot 0.5\nbegun = time.time()" + LOOP.format(steps=100_000, then=DIE), fails=True)
    assert cell.error == "RankDied", cell
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    assert notebook.value("len(seen)") == 2 + step
    cell = notebook.run("%%parallel data" + LOOP.format(steps=3, then="pass"))
    assert f"on the ranks as of optimiser step {step} of the cell" in cell.stdout, cell
    notebook.run("model, opt = nbpar.gather(model, opt)\nthere = state()")
    notebook.run(SETUP + make + LOOP.format(steps=2 + step + 3, then="pass"))
    assert notebook.value("apart(there, state())") < 1e-12


def test_what_a_killed_kernel_left_is_removed_by_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PREFIX", str(tmp_path / "nbpar-snapshots-"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = os.uname().nodename
    left, living, other = (
        tmp_path / f"nbpar-snapshots-{name}-0a" for name in (f"{host}-{ended.pid}", f"{host}-1", f"other-{ended.pid}")
    )
    for folder in (left, living, other):
        (folder / "step-3").mkdir(parents=True)
    snapshots.Snapshots()
    assert not left.exists() and living.exists() and other.exists()
