"""Ranks that die."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.common import DIST, SUM, works
from tests.notebook import Notebook

FAULT = """if dist.get_rank() == 1:
    print('last words')
    time.sleep(0.3)
    print('died at', time.time())
    time.sleep(0.05)
    {act}
dist.barrier()"""
DEATHS = {
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "os._exit(3)": "exit code 3",
    "__import__('ctypes').string_at(0)": "killed by SIGSEGV",
}


@pytest.mark.parametrize("act", DEATHS)
def test_a_rank_dies(notebook: Notebook, act: str) -> None:
    notebook.run("kept = {'answer': 42}\nmodel = __import__('torch').nn.Linear(2, 2)")
    cell = notebook.run(DIST + FAULT.format(act=act), fails=True)
    died = float(cell.stdout.partition("died at ")[2].split()[0])
    assert time.time() - died < 2 and cell.error == "RankDied"
    assert "rank 1 (process" in cell.traceback and DEATHS[act] in cell.traceback and "died at" in cell.traceback
    assert len(cell.traceback.splitlines()) == 1
    assert notebook.run("%%parallel\nprint(kept['answer'], sum(p.numel() for p in model.parameters()))").said == {"42 6"}
    works(notebook)


def test_a_rank_dies_between_two_cells(notebook: Notebook) -> None:
    works(notebook)
    os.kill(notebook.value("nbpar.world().pids")[0], signal.SIGKILL)
    time.sleep(1)
    cell = notebook.run(SUM)
    assert cell.said == {"[2.0, 2.0]"} and "killed by SIGKILL" in cell.notes[0]
