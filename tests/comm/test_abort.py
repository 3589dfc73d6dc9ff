"""One rank fails while the others wait: they raise PeerFailed, and the same processes go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import DistributedDataParallel

from nbpar import comm
from nbpar.comm import foreign
from nbpar.comm.state import state
from nbpar.errors import PeerFailed
from tests.ranks import run_ranks

ROUNDS = 50


def net() -> DistributedDataParallel:
    torch.manual_seed(0)
    return DistributedDataParallel(nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3)), bucket_cap_mb=0.1)


def step(module: nn.Module) -> None:
    module(torch.ones(4, 300)).sum().backward()


def future() -> None:
    dist.all_reduce(torch.ones(3), async_op=True).get_future().wait()


def many_messages() -> None:
    """Small ones go through before anyone receives them; large ones and the barrier wait."""
    for size in (1, 1, 100_000):
        dist.isend(torch.ones(size), dist.get_world_size() - 1)
    dist.barrier()


def new_group() -> None:
    dist.new_group([0, dist.get_world_size() - 1])
    dist.barrier()


def broadcasts() -> None:
    for _ in range(50):
        dist.broadcast(torch.ones(10), src=0)
    dist.barrier()


def sub_group() -> None:
    """The failing rank is in neither of two groups, one of which is destroyed with a call under way."""
    lost = dist.new_group([0, 1])
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(2), group=lost, async_op=True)
        dist.destroy_process_group(lost)
    dist.all_reduce(torch.ones(1_000_000))


WAITS: dict[str, Callable[[], Any]] = {
    "all_reduce": lambda: dist.all_reduce(torch.ones(1_000_000)),
    "half precision": lambda: dist.all_reduce(torch.ones(1000, dtype=torch.bfloat16)),
    "recv": lambda: dist.recv(torch.ones(2), src=dist.get_world_size() - 1),
    "recv from anyone": lambda: dist.recv(torch.ones(2)),
    "send": lambda: dist.send(torch.ones(1_000_000), dst=dist.get_world_size() - 1),
    "messages": many_messages,
    "barrier": dist.barrier,
    "broadcasts": broadcasts,
    "reduce": lambda: [dist.reduce(torch.ones(10), dst=0), dist.barrier()],
    "reduce_scatter": lambda: dist.reduce_scatter_single(torch.ones(5), torch.ones(5 * dist.get_world_size())),
    "objects": lambda: dist.all_gather_object([None] * dist.get_world_size(), "here"),
    "scatter": lambda: dist.scatter(torch.ones(3), src=dist.get_world_size() - 1),
    "all_to_all": lambda: dist.all_to_all_single(torch.ones(6), torch.ones(6)),
    "new_group": new_group,
    "future": future,
}


def outcome_of(wait: Callable[[], Any], fails: bool) -> str:
    """What a rank raises when the last rank fails, and the others are told so while they wait."""
    if fails:
        comm.abort("told by the kernel")
        return "failed"
    timer = threading.Timer(0.01, comm.abort, ["rank 7 raised ValueError"])
    timer.start()
    try:
        wait()
    except PeerFailed as error:
        return error.reason
    finally:
        timer.join()
    return "did not wait"


def fail_over_and_over(names: list[str], rounds: int) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    waits, outcomes, handles = [WAITS[name] for name in names], [], set()
    for turn in range(rounds):
        outcomes.append(outcome_of(waits[turn % len(waits)], rank == size - 1))
        comm.renew()
        total = torch.ones(3)
        dist.all_reduce(total)
        assert total.tolist() == [size] * 3
        handles.update(MPI._handleof(group.comm) for group in state.groups)
    return {
        "outcomes": outcomes,
        "handles": len(handles),
        "groups": len(state.groups),
        "stuck": len(state.stuck),
        "live": sum(len(group.live) for group in state.groups),
    }


def fail_in_backward(rounds: int) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    outcomes = []
    for _ in range(rounds):
        module = net()
        step(module)
        module.zero_grad()
        outcomes.append(outcome_of(lambda module=module: step(module), rank == size - 1))  # type: ignore[misc]
        comm.renew()
    module = net()
    step(module)
    gradients = [parameter.grad.sum().item() for parameter in module.parameters()]
    return {"outcomes": outcomes, "gradients": gradients, "stuck": len(state.stuck)}


def fail_in_other_ways() -> dict[str, Any]:
    """States a cell may leave behind, each followed by `renew`."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {}
    held = dist.group.WORLD  # as DDP, and default arguments in torch.distributed.nn, hold it

    dist.destroy_process_group()
    comm.abort("x")
    comm.renew()
    found["destroyed"] = dist.get_backend()

    found["sub-group"] = outcome_of(sub_group, rank == size - 1) if size > 2 else ""
    comm.renew()

    # A wait that starts after the abort, and an operation.
    comm.abort("over")
    try:
        dist.barrier()
    except PeerFailed as error:
        found["later"] = error.reason
    comm.renew()

    # The failing rank tidies up before anyone tells the others.
    if rank == size - 1:
        dist.destroy_process_group()
    found["tidied"] = outcome_of(lambda: dist.all_reduce(torch.ones(3)), rank == size - 1)
    comm.renew()

    # Different collectives: nothing can end them, and the world goes on all the same.
    work = dist.all_reduce(torch.ones(100_000), async_op=True) if rank else dist.barrier(async_op=True)
    comm.abort("mismatch")
    began = time.monotonic()
    comm.renew()
    found["mismatch"] = time.monotonic() - began < 10
    del work

    total = torch.ones(1)
    dist.all_reduce(total, group=held)
    found["total"] = total.item()
    return found


def everything() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    names = list(WAITS)
    return fail_over_and_over(names, ROUNDS), fail_in_backward(3), fail_in_other_ways()


def test_a_waiting_rank_raises_and_the_world_goes_on() -> None:
    size = 3
    for rank, (repeated, backward, other) in enumerate(run_ranks(size, everything)):
        expected = "failed" if rank == size - 1 else "rank 7 raised ValueError"
        outcomes = dict(zip(list(WAITS) * ROUNDS, repeated["outcomes"], strict=False))
        assert outcomes == dict.fromkeys(WAITS, expected)
        assert repeated["outcomes"] == [expected] * ROUNDS
        assert (repeated["groups"], repeated["stuck"], repeated["live"]) == (2, 0, 0)
        assert repeated["handles"] < 10, "communicators pile up"

        assert backward["outcomes"] == [expected] * 3
        assert backward["gradients"][-1] == 12.0
        assert backward["stuck"] == 0

        assert other["destroyed"] == "mpi"
        assert other["sub-group"] == expected
        assert other["later"] == "over"
        assert other["tidied"] == expected
        assert other["mismatch"]
        assert other["total"] == size


def test_a_group_that_is_just_being_destroyed_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abort comes to a rank's other thread while the main one makes the default group anew."""
    monkeypatch.setitem(c10d._world.pg_map, object(), ("mpi", None))  # its backend's name is forgotten already
    foreign.cut()
