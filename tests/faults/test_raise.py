"""One rank raises while the others wait."""

from __future__ import annotations

import time

import pytest

from tests.faults.common import DIST, works
from tests.notebook import Notebook

MPI = "from mpi4py import MPI\n"


@pytest.mark.parametrize(
    ("wait", "where"),
    [
        ("dist.all_reduce(torch.ones(3, 3))", "all_reduce #0 of 3×3"),
        ("dist.barrier()", "barrier #0"),
        ("dist.recv(torch.ones(3), 1)", "recv #0 of 3"),
        ("dist.all_gather_object([None, None], 'x')", "all_gather #0 of 1"),
        ("ddp(torch.ones(2, 3)).sum().backward()", "all_reduce #"),
        ("MPI.COMM_WORLD.recv(source=1)", "recv #0"),
        ("MPI.COMM_WORLD.allreduce(1)", "allgather #0"),
        ("MPI.COMM_WORLD.Dup()", "Dup #0"),
    ],
)
def test_one_rank_raises_while_the_other_waits(notebook: Notebook, wait: str, where: str) -> None:
    pids = notebook.value("nbpar.world().pids")
    fault = "if dist.get_rank() == 1:\n    time.sleep(0.5)\n    print('raised at', time.time())\n    raise ValueError('boom')\n"
    setup = "ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))\n" if "ddp" in wait else MPI
    code = DIST + setup + fault + wait
    cell = notebook.run(code, fails=True)
    raised = float(cell.stdout.partition("raised at ")[2].split()[0])
    assert time.time() - raised < 1.5 and cell.error == "CellError"
    assert "### rank 1 of 2" in cell.traceback and "ValueError: boom" in cell.traceback
    assert "/nbpar/" not in cell.traceback
    assert f"rank 0 was waiting in {where}" in cell.traceback and ", line 8\n" in cell.traceback
    works(notebook, pids)
    assert notebook.run(f"%%parallel\n{MPI}print(MPI.COMM_WORLD.allreduce(1))").said == {"2"}


ODD = """
import traceback
class Odd:
    def __init__(self):
        self.rank = dist.get_rank()
    def __getstate__(self):
        if any(frame.name == "answer" for frame in traceback.extract_stack()):
            raise SystemExit("not now")
        return self.__dict__
odd = Odd()"""


def test_a_value_that_raises_when_the_notebook_asks_for_it(notebook: Notebook) -> None:
    """It differs between the ranks: they are asked for it once more, after the cell."""
    pids = notebook.value("nbpar.world().pids")
    notebook.run("kept = 1")
    cell = notebook.run(DIST + ODD, fails=True)
    assert cell.error == "CellError" and "SystemExit: not now" in cell.traceback and "__getstate__" in cell.traceback, cell
    assert "as its variables were looked at" in cell.traceback
    assert notebook.value("(kept, 'odd' in globals())") == (1, False)
    works(notebook, pids)


HALVED = """import torch
before = 7
def halved(t, layer):
    half = t / 2
    return half.reshape(7)"""


def test_debug_opens_where_all_ranks_raised(notebook: Notebook) -> None:
    notebook.run(HALVED)
    notebook.run("%%parallel data\nx = torch.arange(6.)\ny = halved(x, torch.nn.Linear(2, 2))", fails=True)
    said = notebook.debug("p half", "p layer", "ll", "up", "p x * before", "before = 8")
    assert "in halved" not in said and "(5)halved()" in said and "/nbpar/" not in said, said
    assert "tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 2.5000])" in said and "<Linear on rank " in said
    assert "def halved(t, layer):" in said and "---> 3 y = halved(x, torch.nn.Linear(2, 2))" in said  # the cell
    assert "tensor([ 0.,  7., 14., 21., 28., 35.])" in said
    assert notebook.value("before") == 8  # it is the notebook's variable


def test_a_syntax_error_that_a_cell_raises_is_one(notebook: Notebook) -> None:
    assert notebook.run("%%parallel data\neval('1 +')", fails=True).error == "SyntaxError"
    cell = notebook.run("%%parallel data\nx = (", fails=True)  # never ran
    assert "SyntaxError: " in cell.traceback and ", line 2" in cell.traceback and "nbpar" not in cell.traceback


def test_values_that_cannot_be_taken_do_not_hide_the_failure(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel\nimport torch\ntorch.vmap(lambda x: [x][7])(torch.ones(2, 2))", fails=True)
    assert cell.error == "IndexError" and "During handling" not in cell.traceback
    assert "<Tensor on rank " in notebook.debug("p x")


def test_debug_opens_where_one_rank_raised(notebook: Notebook) -> None:
    notebook.run("before, made = 7, 0")
    code = DIST + "made = 1\ndef odd(rank):\n    again = [rank, 'a']\n    assert not rank, 'odd'\nodd(dist.get_rank())"
    assert notebook.run(code, fails=True).error == "CellError"
    said = notebook.debug("p again", "up", "p before, made")
    assert "odd()" in said and "[1, 'a']" in said and "(7, 0)" in said, said


def test_debug_opens_where_an_interrupt_came(notebook: Notebook) -> None:
    sent = notebook.send_until(f"{DIST}def waits(seconds):\n    print('begun', flush=True)\n    time.sleep(seconds)\nwaits(100)")
    notebook.interrupt()
    assert notebook.collect(sent).error == "KeyboardInterrupt"
    said = notebook.debug("p seconds")
    assert "waits()" in said and "\n100" in said, said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_in_a_ranks_other_thread_is_told_and_holds_nobody_up(notebook: Notebook, rank: int) -> None:
    """That thread sends the rank's output: if it ended, the kernel would wait for ever."""
    setup = f"""import threading
from nbpar.comm import foreign
foreign.own, main, now = foreign.cut, threading.main_thread(), threading.current_thread
if dist.get_rank() == {rank}:
    foreign.cut = lambda own=foreign.cut, main=main, now=now: own() if now() is main else 1 / 0
del main, now
"""
    notebook.run(DIST + setup)
    cell = notebook.run(
        f"{DIST}if dist.get_rank() == {1 - rank}:\n    raise ValueError('boom')\ndist.barrier()", fails=True, timeout=30
    )
    assert cell.error == "CellError" and "ValueError: boom" in cell.traceback
    assert "ZeroDivisionError" in notebook.run(f"{DIST}time.sleep(0.2)\nprint('on')", timeout=30).stderr + cell.stderr
    notebook.run(f"{DIST}from nbpar.comm import foreign\nforeign.cut = foreign.own")
    works(notebook)


def test_an_abort_that_comes_after_the_reply_is_void(notebook: Notebook) -> None:
    """What follows is the next default group, or another cell: neither is to end of it."""
    works(notebook)
    notebook.run(
        "world = nbpar.world()\nworld.abort(0, 'late')\nworld.hurt = False"
    )  # or the next cell would begin with all made anew
    works(notebook)
