"""In lockstep a program meets what it meets in one process: one clock, no other processes that a library would share work with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook import Notebook

MODES = ["data", "model", "hybrid --mesh 2x1"]
SETUP = """
import os, time, torch, torch.nn as nn
import torch.distributed as dist
from time import perf_counter as tick
from torch.utils.data import DataLoader
model = nn.Linear(3, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(8, 3)

class Stopwatch:
    def __init__(self):
        self.laps = []

    def lap(self):
        self.laps.append(time.monotonic())

watch = Stopwatch()

def step():
    opt.zero_grad()
    loss = model(x).pow(2).mean()
    loss.backward()
    opt.step()
    return loss.item()
"""


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    with Notebook() as notebook:
        notebook.run(SETUP)
        yield notebook


@pytest.mark.parametrize("mode", MODES)
def test_times_are_numbers_in_the_notebook(notebook: Notebook, mode: str) -> None:
    cell = notebook.run(f"""%%parallel {mode} -n 2
begin, ticks, nanoseconds = time.time(), tick(), time.perf_counter_ns()
step(), watch.lap()
times = {{"wall": time.time() - begin, "ticks": tick() - ticks, "ns": time.perf_counter_ns() - nanoseconds}}
print(f"{{times['wall']:.9f}} s")
""")
    assert cell.stdout.count(" s\n") == 1, cell.stdout  # one line, not one for each rank
    assert notebook.run("print([type(t).__name__ for t in (*times.values(), *watch.laps[:1])])").stdout == (
        "['float', 'float', 'int', 'float']\n"
    )
    assert notebook.run("print(0 < times['wall'] < 60, 0 < times['ticks'] < 60, tick is time.perf_counter)").stdout == (
        "True True True\n"
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_that_goes_by_time(notebook: Notebook, mode: str) -> None:
    notebook.run(f"""%%parallel {mode} -n 2
steps, end = 0, time.monotonic() + 0.3
while time.monotonic() < end:
    step()
    steps += 1
""")
    assert notebook.run("print(type(steps).__name__, steps > 0)").stdout == "int True\n"


def test_clocks_that_were_imported_in_a_cell_come_back_as_themselves(notebook: Notebook) -> None:
    notebook.run("%%parallel data -n 2\nfrom time import process_time as used\nspent = used()")
    assert notebook.run("print(type(spent).__name__, used is time.process_time)").stdout == "float True\n"


def test_ranks_that_part_ways_have_their_own_clocks(notebook: Notebook) -> None:
    cell = notebook.run("""%%parallel data -n 2
import nbpar
if nbpar.rank() == 0:
    late = time.time()
for _ in range(nbpar.rank()):
    time.time()
loss = step()
""")
    assert "rank" not in cell.stderr
    notebook.run("""%%parallel data -n 2
if dist.get_rank() == 0:
    late = time.time()
loss = step()
""")
    assert notebook.run("print(type(loss).__name__)").stdout == "float\n"


@pytest.mark.parametrize("mode", MODES)
def test_libraries_find_one_process(notebook: Notebook, mode: str) -> None:
    cell = notebook.run(f"""%%parallel {mode} -n 2
import nbpar
names = [n for n in os.environ if n.startswith(("PMI", "OMPI_")) or n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
os.environ["SET_IN_A_CELL"] = "yes"
print(dist.is_available() and dist.is_initialized(), names, nbpar.size())
""")
    assert cell.stdout.startswith("False [] 2\n")
    cell = notebook.run("%%parallel -n 2\nprint(dist.is_initialized(), dist.get_world_size(), os.environ['SET_IN_A_CELL'])")
    assert cell.stdout.startswith("True 2 yes\n"), cell.stdout


def test_an_optimiser_that_wraps_another_can_be_sent(notebook: Notebook) -> None:
    """As accelerate's does: it is an `Optimizer` that was not made by `Optimizer.__init__`."""
    notebook.run("""
class Wrapped(torch.optim.Optimizer):
    def __init__(self, inner):
        self.inner = inner

    def step(self, closure=None):
        self.inner.step(closure)

wrapped = Wrapped(opt)
""")
    for _ in range(2):
        notebook.run("%%parallel data -n 2\nmodel(x).sum().backward()\nwrapped.step()")
    assert notebook.run("wrapped.step(); print(wrapped.inner is opt)").stdout == "True\n"


def test_a_script_knows_the_functions_of_torch(notebook: Notebook) -> None:
    notebook.run("""
def holds(x: torch.Tensor) -> bool:
    return bool(torch.any(x > 0)) and bool(torch.all(x > -100)) and bool((x == x).all())
""")
    cell = notebook.run("%%parallel data -n 2\ntorch.jit.script(holds)(x)")
    assert cell.result == {"text/plain": "True"}


def test_what_the_compiler_leaves_in_the_notebook_is_nobodys(notebook: Notebook) -> None:
    notebook.run("def total(x):\n    return x.sum() + torch.all(x > 0)")
    cell = notebook.run("%%parallel data -n 2\ntorch.compile(total, backend='eager', fullgraph=True)(x) == total(x)")
    assert cell.result == {"text/plain": "tensor(True)"}
    assert "__compiled_fn" not in cell.stdout
