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
