"""Ranks that wait in vain, and ranks that are only slow."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from tests.faults.common import DIST, works
from tests.notebook import Notebook


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("if dist.get_rank(): dist.all_reduce(torch.ones(3))", "rank 0 has left the cell"),
        ("dist.all_reduce(torch.ones(2)) if dist.get_rank() else dist.recv(torch.ones(2), 1)", "rank 0 waits in recv #0"),
        ("dist.recv(torch.ones(3), 1 - dist.get_rank())", "rank 1 waits in recv #0 of 3, line 3"),
    ],
)
def test_ranks_that_wait_in_vain_are_told_apart(notebook: Notebook, code: str, says: str) -> None:
    works(notebook)
    pids = notebook.value("nbpar.world().pids")
    at = time.monotonic()
    cell = notebook.run(DIST + code, fails=True)
    assert cell.error == "CollectiveMismatch" and says in cell.traceback and time.monotonic() - at < 18
    works(notebook, pids)


def test_slow_ranks_are_left_alone(notebook: Notebook) -> None:
    cell = notebook.run(f"{DIST}if dist.get_rank(): time.sleep(12)\ndist.barrier()\nprint('done')")
    assert cell.said == {"done"}


def test_where_shows_stacks_and_collectives_in_a_terminal_and_in_another_notebook(notebook: Notebook) -> None:
    left = [tempfile.mkdtemp(prefix="nbpar-") for _ in range(4)]  # as by ranks that were killed with their kernel
    for folder in left:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(f"{folder}/where-0")
    with Notebook() as other:
        message = notebook.send_until(
            f"{DIST}def deep():\n    time.sleep(8)\nprint('begun')\nif dist.get_rank(): deep()\ndist.barrier()"
        )
        told = subprocess.run([sys.executable, "-m", "nbpar", "where"], capture_output=True, text=True, check=True).stdout
        also = other.run("%parallel where").stdout
    notebook.collect(message)
    for folder in left:
        shutil.rmtree(folder)
    for pid in notebook.value("nbpar.world().pids"):
        assert f"process {pid}" in told and f"process {pid}" in also
    assert "in deep" in told and "waits in barrier #0" in told
    assert "in deep" in also and "waits in barrier #0" in also
