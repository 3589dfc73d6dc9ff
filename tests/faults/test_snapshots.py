"""A long lockstep cell keeps snapshots: when a rank dies the notebook has the last one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nbpar.ranks import snapshots
from tests.faults.common import works
from tests.notebook import Cell, Notebook

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
    then = "if step == 100: print('begun', flush=True)\n    time.sleep(0.002)"
    message = notebook.send_until(f"%%parallel {mode} --snapshot 0.05" + LOOP.format(steps=100_000, then=then))
    notebook.interrupt()
    cell = notebook.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and "as they were before" not in cell.traceback
    assert notebook.value("len(seen)") > 0


SGD = SETUP.replace("Adam(model.parameters(), lr=0.01)", "SGD(model.parameters(), lr=0.05, momentum=0.9)").replace(
    "for name in ('exp_avg', 'exp_avg_sq', 'step')", "for name in ('momentum_buffer',)"
)
MAKE = "\n" + "\n".join(SGD.splitlines()[1:4])
KEPT = ["data", "model", "model --how tensor", "hybrid --mesh 2x2", "hybrid --mesh 2x2 --how tensor"]


def begins_with(cell: Cell, step: int) -> bool:
    return f"nbpar: model, opt: on the ranks as of optimiser step {step} of the cell" in cell.stdout


@pytest.mark.parametrize("mode", KEPT)
def test_a_model_that_stays_is_there_again_after_a_death(notebook: Notebook, mode: str) -> None:
    """Its snapshot is in files: the next cell's ranks begin with it, and train on as one process does."""
    notebook.run(SGD)
    notebook.run(f"%%parallel {mode} --keep model,opt{MAKE}" + LOOP.format(steps=2, then="pass"))
    assert notebook.value("type(model).__name__") == "RankRef"
    assert notebook.value("type(model.gather()).__name__") == "Sequential"
    cell = notebook.run(f"%%parallel {mode} --snapshot 0.5\nbegun = time.time()" + LOOP.format(steps=100_000, then=DIE), fails=True)
    assert cell.error == "RankDied" and "is lost" not in cell.traceback, cell
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    assert notebook.value("len(seen)") == 2 + step
    cell = notebook.run(f"%%parallel {mode}" + LOOP.format(steps=3, then="pass"))
    assert begins_with(cell, step), cell
    notebook.run("model, opt = nbpar.gather(model, opt)\nthere = state()")
    notebook.run(SGD + MAKE + LOOP.format(steps=2 + step + 3, then="pass"))
    assert notebook.value("apart(there, state())") < 1e-12


@pytest.mark.parametrize("mode", KEPT)
def test_a_model_that_is_to_stay_is_there_after_a_death_in_its_first_cell(notebook: Notebook, mode: str) -> None:
    """It was made in the cell; what is gathered is as of the step that is said."""
    notebook.run(SGD)
    made = f"{MAKE}\nbegun = time.time()"
    cell = notebook.run(f"%%parallel {mode} --keep model --snapshot 0.5{made}" + LOOP.format(steps=100_000, then=DIE), fails=True)
    assert cell.error == "RankDied", cell
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    assert notebook.value("(type(model).__name__, type(opt).__name__, len(seen))") == ("RankRef", "RankRef", step)
    assert begins_with(notebook.run(f"%%parallel {mode}\nkind = type(model)"), step)
    notebook.run("model, opt = nbpar.gather(model, opt)\nthere = state()")
    notebook.run(SGD + MAKE + LOOP.format(steps=step, then="pass"))
    assert notebook.value("apart(there, state())") < 1e-12


def test_another_number_of_ranks_begins_with_what_stayed(notebook: Notebook) -> None:
    notebook.run("%parallel start -n 2\n" + SGD)
    made = f"{MAKE}\nbegun = time.time()"
    cell = notebook.run(f"%%parallel model --keep model --snapshot 0.5{made}" + LOOP.format(steps=100_000, then=DIE), fails=True)
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    notebook.run("%parallel start -n 3")
    assert begins_with(notebook.run("%%parallel model\nmodel.train()"), step)
    notebook.run("model, opt = nbpar.gather(model, opt)\nthere = state()")
    notebook.run(SGD + MAKE + LOOP.format(steps=step, then="pass"))
    assert notebook.value("apart(there, state())") < 1e-12
    notebook.run("%parallel start -n 2")


def test_what_a_later_cell_has_trained_on_is_lost_with_its_ranks(notebook: Notebook) -> None:
    """Snapshots of a cell that ended well are of no use any more."""
    notebook.run("%parallel start -n 2\n" + SGD)
    notebook.run(f"%%parallel model --keep model --snapshot 0.2{MAKE}" + LOOP.format(steps=100, then="time.sleep(0.01)"))
    assert notebook.value("(type(model).__name__, type(opt).__name__)") == ("RankRef", "RankRef")
    assert "model, which stayed on the ranks, is lost." in notebook.run("%parallel restart").stdout


def test_without_a_snapshot_it_is_said_that_what_stays_is_lost(notebook: Notebook) -> None:
    notebook.run(SGD)
    notebook.run(f"%%parallel model --keep model,opt{MAKE}" + LOOP.format(steps=2, then="pass"))
    cell = notebook.run("%%parallel model --snapshot off\nbegun = time.time()" + LOOP.format(steps=100_000, then=DIE), fails=True)
    assert "model, which stayed on the ranks, is lost. It was never saved." in cell.traceback, cell
    assert notebook.run("model(x)", fails=True).error == "CannotTravel"


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
