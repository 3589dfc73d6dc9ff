"""`--check` in a notebook: equal cells are said to be equal, and a fault planted in a mode is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.notebook import Notebook

SETUP = """import random, numpy as np, torch, torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
x, y = torch.randn(26, 6).double(), torch.arange(26) % 3
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
def train(steps):
    for _ in range(steps):
        opt.zero_grad()
        loss = F.cross_entropy(model(x + 0.01 * random.random() * np.random.rand()), y)
        loss.backward()
        opt.step()
"""
TENSOR, HYBRID = "model --how tensor", "hybrid --mesh 2x2"
MODES = ["data", "model", TENSOR]

AVERAGE = "nbpar.parallel.data.gradients", "average"
GRADIENT, ARRIVED = ("nbpar.parallel.model.transfer.Arrive", "backward"), ("nbpar.parallel.model.transfer", "arrived")
SHARDING = "nbpar.parallel.tensor.ranks.Ranks"
# By mode and fault: what is replaced on all ranks by a plain cell before, and what it does then. The check that mode data makes
# at a model's first call would find a swapped row, so it comes later.
FAULTS = {
    ("data", "a factor"): (*AVERAGE, "true(*args); [grad.mul_(1.01) for grad in args[0]]"),
    ("data", "a missed gradient"): (*AVERAGE, "true(args[0][1:], *args[1:])"),
    ("data", "a swapped row"): (
        "nbpar.parallel.data.border.Leave", "forward",
        "calls.append(1); return swap(true(*args)) if len(calls) > 3 else true(*args)",
    ),
    ("model", "a factor"): (*GRADIENT, "return true(args[0], give(args[1] * 1.01, args[0].way[1]))"),
    ("model", "a missed gradient"): (*GRADIENT, "return true(args[0], give(args[1] * 0, args[0].way[1]))"),
    ("model", "a swapped row"): (*ARRIVED, "return swap(true(*args))"),
    (TENSOR, "a factor"): (SHARDING, "all_reduce", "return true(*args) * 1.01"),
    (TENSOR, "a missed gradient"): ("nbpar.parallel.tensor.functions.Spread", "backward", "return true(args[0], args[1] * 0)"),
    (TENSOR, "a swapped row"): (SHARDING, "gather", "whole = true(*args); return swap(whole) if len(whole) == 26 else whole"),
    (HYBRID, "a factor"): (*AVERAGE, "true(*args); [grad.mul_(1.01) for grad in args[0]]"),
    (HYBRID, "a missed gradient"): (*GRADIENT, "return true(args[0], give(args[1] * 0, args[0].way[1]))"),
    (HYBRID, "a swapped row"): (*ARRIVED, "return swap(true(*args))"),
}  # fmt: skip
PLANT = """%%parallel
import torch, nbpar.parallel.hybrid
from nbpar.parallel.model.home import give
source = '''
def planted(true, give, swap, calls):
    def faulty(*args):
        {does}
    return faulty
'''
names = dict()
exec(compile(source, "<planted>", "exec"), names)  # a line of no cell, which messages would be told apart by
torch.true = vars({where})["{name}"]
faulty = names["planted"]({where}.{name}, give, lambda rows: rows[[1, 0, *range(2, len(rows))]] if len(rows) > 1 else rows, [])
{where}.{name} = staticmethod(faulty) if isinstance(torch.true, staticmethod) else faulty"""
MEND = "%%parallel\nimport torch, nbpar.parallel.data, nbpar.parallel.model\n{where}.{name} = torch.true"


@pytest.fixture(scope="module")
def trained(notebook: Notebook) -> Notebook:
    """The checks of the mode's own and imports are over."""
    notebook.run(SETUP)
    return notebook


def verdict(notebook: Notebook, line: str, cell: str) -> str:
    return notebook.run(f"%%parallel {line}\n{cell}").closing.rpartition(" · ")[2]


def largest(text: str) -> float:
    return float(text.rpartition(": ")[2])


@pytest.mark.parametrize("mode", MODES)
def test_an_equal_cell_is_said_to_be_the_same(trained: Notebook, mode: str) -> None:
    text = verdict(trained, f"{mode} --check", "train(5)")
    assert text.startswith("same as one process after 3 steps: ") and largest(text) < 1e-13
    assert verdict(trained, f"{mode} --check 1", "train(5)").startswith("same as one process after 1 step: ")
    assert verdict(trained, f"{mode} --check 7", "train(2)").startswith("same as one process after 2 steps: ")
    assert trained.value("nbpar.last().check.same and nbpar.last().check.steps") == 2
    assert "one process" not in trained.run(f"%%parallel {mode}\ntrain(2)").closing
    assert trained.value("nbpar.last().check") is None


@pytest.mark.parametrize("mode", MODES)
def test_the_notebook_goes_on_as_without_a_check(trained: Notebook, mode: str) -> None:
    """Weights, random states and what is printed are those of one run of the cell."""
    trained.run(
        "import copy\nstart = copy.deepcopy((model.state_dict(), opt.state_dict()))\n"
        "states = torch.get_rng_state(), random.getstate()"
    )
    results = []
    for line in ("", "--check 2"):
        trained.run("model.load_state_dict(start[0]); opt.load_state_dict(copy.deepcopy(start[1]))")
        trained.run("torch.set_rng_state(states[0]); random.setstate(states[1]); np.random.seed(3)")
        cell = trained.run(f"%%parallel {mode} {line}\ntrain(4); print('once')")
        assert cell.lines == ["once"]
        results.append(trained.value("(model[0].weight.tolist(), random.random(), torch.rand(1).item(), np.random.rand())"))
    assert results[0] == results[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_cell_without_a_step_is_compared_by_its_variables(trained: Notebook, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "written"
    cell = f"""model.eval()
with torch.no_grad(): accuracy = (model(x).argmax(1) == y).double().mean().item()
model.train()
with open({str(file)!r}, "a") as notes: notes.write("once")
w = model[0].weight
(model(x) ** 2).mean().backward()
w.data -= 0.1 * w.grad"""
    assert largest(verdict(trained, f"{mode} --check", cell)) < 1e-13
    assert file.read_text() == "once"
    text = verdict(trained, f"{mode} --check", "import os\nparent = os.getppid() if os.environ.get('NBPAR_SIZE') else 0\nk = 1")
    assert text.startswith("differs from one process at the end: parent by ")


@pytest.mark.parametrize(("mode", "fault"), [(mode, fault) for mode, fault in FAULTS if mode != HYBRID])
def test_a_planted_fault_is_found(trained: Notebook, mode: str, fault: str) -> None:
    plant(trained, mode, fault)


def plant(trained: Notebook, mode: str, fault: str) -> None:
    where, name, does = FAULTS[mode, fault]
    trained.run(SETUP)
    trained.run(PLANT.format(where=where, name=name, does=does))
    found = verdict(trained, f"{mode} --check 5", "train(6)")
    trained.run(MEND.format(where=where, name=name))
    assert found.startswith("differs from one process after 5 steps: ") and "model." in found, found
    assert verdict(trained, f"{mode} --check", "train(4)").startswith("same as one process after 3 steps: ")


def test_what_one_process_does_otherwise_is_told(trained: Notebook) -> None:
    text = verdict(trained, "data --check", "assert nbpar.size() == 2\ntrain(1)")
    assert text == "not compared with one process: there it raised AssertionError in line 2: "
    text = verdict(
        trained, "data --check", "import os, signal\nif nbpar.size() == 1: os.kill(os.getpid(), signal.SIGSEGV)\ntrain(1)"
    )
    assert text == "not compared with one process: the process that replayed the cell ended in SIGSEGV"
    text = verdict(trained, "data --check", "train(nbpar.size())")
    assert text == "differs from one process after 2 steps: the number of steps is 1 there"


def test_an_interrupt_ends_the_replay(trained: Notebook) -> None:
    import time

    message = trained.send("%%parallel data --check\nimport time\nwhile nbpar.size() == 1: time.sleep(1)\ntrain(1)")
    time.sleep(1)
    began = time.monotonic()
    trained.interrupt()
    assert trained.collect(message, 20).error == "KeyboardInterrupt" and time.monotonic() - began < 4
    assert verdict(trained, "data --check", "train(1)").startswith("same")


def test_nothing_is_left_behind(trained: Notebook) -> None:
    import tempfile

    pids = trained.value("nbpar.world().pids")
    children = [int(pid) for rank in pids for pid in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()]
    assert not children
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("nbpar-check-")]


def test_a_mesh_is_checked_and_its_faults_are_found(trained: Notebook) -> None:
    trained.run("%parallel start -n 4\n" + SETUP)
    text = verdict(trained, f"{HYBRID} --check", "train(5)")
    assert text.startswith("same as one process after 3 steps: ") and largest(text) < 1e-13
    for mode, fault in FAULTS:
        if mode == HYBRID:
            plant(trained, mode, fault)
