"""Ranks that wait in torch's own backend, in C++, where no poll can be ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.faults.common import DIST
from tests.notebook import Notebook

FAULT = "if dist.get_rank() == 1:\n    time.sleep(0.5)\n    print('raised at', time.time())\n    raise ValueError('boom')\n"
DDP = "ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))\nout = ddp(torch.ones(2, 3)).sum()\n"


@pytest.fixture(scope="module", params=[2, 3])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def gloo(size: int) -> Iterator[Notebook]:
    with Notebook() as notebook:
        notebook.run(f"%parallel start -n {size} --backend gloo")
        yield notebook


@pytest.fixture(scope="module")
def pair() -> Iterator[Notebook]:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2 --backend gloo")
        yield notebook


def works(notebook: Notebook, size: int, pids: list[int]) -> None:
    cell = f"{DIST}x = torch.ones(2); dist.all_reduce(x); dist.all_reduce(x, group=dist.new_group()); print(x.tolist())"
    assert notebook.run(cell).said == {f"[{size**2}.0, {size**2}.0]"}
    assert notebook.value("nbpar.world().pids") == pids, "on the same processes"


@pytest.mark.parametrize(
    ("setup", "wait", "where"),
    [
        ("", "dist.all_reduce(torch.ones(3, 3))", "all_reduce #0 of 3×3"),
        ("", "dist.all_gather([torch.ones(1)] * dist.get_world_size(), torch.ones(1))", "all_gather #0 of 1"),
        ("", "dist.barrier()", "barrier #0"),
        ("", "dist.recv(torch.ones(3), 1)", "recv #0 of 3"),
        ("", "dist.all_reduce(torch.ones(3), async_op=True).wait()", "all_reduce #0 of 3"),
        ("group = dist.new_group()\n", "dist.all_reduce(torch.ones(3), group=group)", "all_reduce #0 of 3"),
        ("", "dist.new_group()", "new_group"),
        (DDP, "out.backward()", "backward"),
    ],
)
def test_one_rank_raises_while_the_others_wait(gloo: Notebook, size: int, setup: str, wait: str, where: str) -> None:
    pids = gloo.value("nbpar.world().pids")
    code = DIST + setup + FAULT + wait
    cell = gloo.run(code, fails=True, timeout=30)
    raised = float(cell.stdout.partition("raised at ")[2].split()[0])
    assert time.time() - raised < 1.5 and cell.error == "CellError"
    assert f"### rank 1 of {size}" in cell.traceback and "ValueError: boom" in cell.traceback and "gloo" not in cell.traceback
    for rank in {*range(size)} - {1}:
        assert f"rank {rank} was waiting in {where}, line {len(code.splitlines())}\n" in cell.traceback
    works(gloo, size, pids)


@pytest.mark.parametrize("mode", ["", "data"])
def test_an_interrupt_ends_a_wait(gloo: Notebook, size: int, mode: str) -> None:
    pids = gloo.value("nbpar.world().pids")
    fault = f"{DIST}print('begun', flush=True)\nif dist.get_rank() == 1:\n    time.sleep(1000)\ndist.all_reduce(torch.ones(1))"
    message = gloo.send_until(fault.replace("%%parallel", f"%%parallel {mode}"))
    gloo.interrupt()
    begin = time.time()
    cell = gloo.collect(message, 20)
    assert cell.error == "KeyboardInterrupt" and "gloo" not in cell.traceback, cell
    assert time.time() - begin < (4 if mode else 2)
    works(gloo, size, pids)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("dist.broadcast(x, 0)", "rank 1 waits in broadcast #0 of 2, line 7, since"),
        ("pass", "rank 1 has left the cell"),
    ],
)
def test_calls_that_do_not_match_are_explained(pair: Notebook, other: str, said: str) -> None:
    pids = pair.value("nbpar.world().pids")
    message = pair.send(f"{DIST}x = torch.ones(2)\nif dist.get_rank() == 0:\n    dist.all_reduce(x)\nelse:\n    {other}")
    time.sleep(3)
    where = subprocess.run([sys.executable, "-m", "nbpar", "where"], capture_output=True, text=True, check=True).stdout
    cell = pair.collect(message, 20)
    assert cell.error == "CollectiveMismatch" and said in cell.traceback, cell
    assert "rank 0 waits in all_reduce #0 of 2, line 5, since" in cell.traceback
    assert "waits in all_reduce #0 of 2, line 5, since" in where
    works(pair, 2, pids)


@pytest.mark.parametrize(
    ("code", "other", "line", "said"),
    [
        (DDP, "pass", "    out.backward()", "rank 1 has left the cell"),
        (DDP, "dist.recv(torch.ones(2), 0)", "    out.backward()", "rank 1 waits in recv"),
        ("", "pass", "    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))", "rank 1 has left the cell"),
    ],
)
def test_waits_in_vain_that_only_torch_knows_of(pair: Notebook, code: str, other: str, line: str, said: str) -> None:
    """In the backward pass of DistributedDataParallel, and where it is made, C++ calls C++."""
    pids = pair.value("nbpar.world().pids")
    text = f"{DIST}{code}if dist.get_rank() == 0:\n{line}\nelse:\n    {other}"
    cell = pair.run(text, fails=True, timeout=30)
    operation = "backward" if "backward" in line else "DistributedDataParallel"
    assert cell.error == "CollectiveMismatch" and said in cell.traceback, cell
    assert f"rank 0 waits in {operation}, line {len(text.splitlines()) - 2}, since 1" in cell.traceback
    works(pair, 2, pids)


def test_a_backward_pass_that_takes_long_is_waited_for(pair: Notebook) -> None:
    """It computes, or runs Python that sleeps: nobody is waited for."""
    slow = """
class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        if how: time.sleep(13)
        return grad
x = torch.ones(800, 800, requires_grad=True)
y = Slow.apply(x)
if not how:
    for _ in range(400): y = (y @ x) / 800
y.sum().backward()
"""
    pair.run(f"{DIST}how = dist.get_rank()\n{slow}")


def test_a_rank_that_computes_for_long_is_waited_for(pair: Notebook) -> None:
    cell = pair.run(f"{DIST}x = torch.ones(2)\nif dist.get_rank():\n    time.sleep(13)\ndist.all_reduce(x)\nprint(x.tolist())")
    assert cell.said == {"[2.0, 2.0]"}
