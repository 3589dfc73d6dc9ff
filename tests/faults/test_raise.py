"""One rank raises while the others wait."""

from __future__ import annotations

import time

import pytest

from tests.faults.common import DIST, works
from tests.notebook import Notebook


@pytest.mark.parametrize(
    "wait",
    [
        "dist.all_reduce(torch.ones(3))",
        "dist.barrier()",
        "dist.recv(torch.ones(3), 1)",
        "dist.all_gather_object([None, None], 'x')",
        "ddp(torch.ones(2, 3)).sum().backward()",
        "MPI.COMM_WORLD.Dup().recv(source=1)",
        "MPI.COMM_WORLD.Dup().allreduce(1)",
    ],
)
def test_one_rank_raises_while_the_other_waits(notebook: Notebook, wait: str) -> None:
    pids = notebook.value("nbpar.world().pids")
    fault = "if dist.get_rank() == 1:\n    time.sleep(0.5)\n    print('raised at', time.time())\n    raise ValueError('boom')\n"
    setup = (
        "ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))\n" if "ddp" in wait else "from mpi4py import MPI\n"
    )
    code = DIST + setup + fault + wait
    cell = notebook.run(code, fails=True)
    raised = float(cell.stdout.partition("raised at ")[2].split()[0])
    assert time.time() - raised < 1.5 and cell.error == "CellError"
    assert "### rank 1 of 2" in cell.traceback and "ValueError: boom" in cell.traceback
    assert "rank 0 was waiting" in cell.traceback and "in line 8" in cell.traceback
    works(notebook, pids)
