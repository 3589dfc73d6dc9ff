"""Ranks in lockstep that part ways are told so before a wrong value is used; ranks that do not are left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbpar import comm
from nbpar.comm.state import state
from nbpar.errors import CollectiveMismatch, PeerFailed
from tests.ranks import run_ranks

Program = Callable[[bool], Any]  # called with whether this is the last rank, the one that strays


def numbers(odd: bool) -> torch.Tensor:
    return torch.ones(4 if odd else 3)


def a_mode() -> Callable[[], None]:
    """As a mode of nbpar calls a collective: not the cell's own doing."""
    names: dict[str, Any] = {"all_reduce_": comm.all_reduce_, "torch": torch}
    exec(compile("def add(): all_reduce_(torch.ones(3))", "/somewhere/nbpar/parallel/mode.py", "exec"), names)
    add: Callable[[], None] = names["add"]
    return add


def other_line(odd: bool) -> None:
    add = a_mode()
    if odd:
        add()
    else:
        add()


def asynchronous(odd: bool) -> None:
    work = dist.all_reduce(torch.ones(3), async_op=True)
    other = dist.all_reduce(numbers(odd), async_op=True)
    work.wait()
    other.wait()


def ddp(odd: bool) -> None:
    torch.manual_seed(0)
    module = DistributedDataParallel(nn.Linear(3, 3))
    for _ in range(5 - 2 * odd):
        module(torch.ones(2, 3)).sum().backward()
    dist.all_reduce(torch.ones(3))


def swallowed(odd: bool) -> None:
    try:
        dist.all_reduce(numbers(odd))
    except CollectiveMismatch:
        pass


def sub_group(odd: bool) -> None:
    group = dist.new_group(list(range(dist.get_world_size())))
    dist.all_reduce(numbers(odd), group=group)


STRAY: dict[str, tuple[Program, str, str]] = {  # what the others were in, and what the last rank
    "shape": (lambda odd: dist.all_reduce(numbers(odd)), "all_reduce #0 of 3,", "all_reduce #0 of 4,"),
    "fused": (lambda odd: comm.all_reduce_(numbers(odd)), "all_reduce #0 of 3,", "all_reduce #0 of 4,"),
    "dtype": (lambda odd: dist.all_reduce(torch.ones(2).to(torch.half if odd else torch.float)), "(float32)", "(float16)"),
    "operation": (lambda odd: dist.barrier() if odd else dist.all_reduce(torch.ones(3)), "all_reduce #0 of 3,", "barrier #0,"),
    "root": (lambda odd: dist.broadcast(torch.ones(3), int(odd)), "root 0", "root 1"),
    "line": (other_line, "all_reduce #0 of 3, line", "all_reduce #0 of 3, line"),
    "parts": (lambda odd: dist.all_gather([numbers(odd)] * dist.get_world_size(), numbers(odd)), "all_gather #0 of 9", "of 12"),
    "left": (lambda odd: None if odd else dist.barrier(), "barrier #0,", "at the end of the cell"),
    "one more": (lambda odd: dist.barrier() if odd else None, "at the end of the cell", "barrier #0,"),
    "steps": (lambda odd: comm.meet_at_end(7 + odd), "at the end of the cell, after 7 optim", "after 8 optimiser steps"),
    "asynchronous": (asynchronous, "all_reduce #1 of 3,", "all_reduce #1 of 4,"),
    "ddp": (ddp, "of 12,", "of 3,"),
    "swallowed": (swallowed, "all_reduce #0 of 3,", "all_reduce #0 of 4,"),
    "sub-group": (sub_group, "all_reduce #0 of 3,", "all_reduce #0 of 4,"),
}


def watched(program: Callable[[], Any]) -> str:
    """How a cell in lockstep ends."""
    comm.trace.start(lambda filename: filename == __file__)
    comm.watch(True)
    try:
        program()
        comm.meet_at_end()
    except (CollectiveMismatch, PeerFailed) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        comm.watch(False)
    return "ended"


def stray(names: list[str]) -> tuple[dict[str, str], float, int]:
    odd = dist.get_rank() == dist.get_world_size() - 1
    texts, slowest = {}, 0.0
    for name in names:
        texts[name] = watched(lambda name=name: STRAY[name][0](odd))  # type: ignore[misc]
        began = time.monotonic()
        comm.renew()
        if name not in ("asynchronous", "ddp"):  # their collectives had started
            slowest = max(slowest, time.monotonic() - began)
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == dist.get_world_size()
    return texts, slowest, len(state.stuck)


def test_ranks_that_part_ways_are_named_with_their_calls() -> None:
    size = 3
    for texts, slowest, stuck in run_ranks(size, stray, list(STRAY)):
        for name, (_, most, last) in STRAY.items():
            kind, _, said = texts[name].partition(": ")
            assert kind == "CollectiveMismatch", texts[name]
            many, one = sorted(said.splitlines()[1:])
            assert many.startswith("  rank 0,1 was") and most in many, name
            assert one.startswith("  rank 2 was") and last in one, name
        lines = texts["line"].splitlines()
        assert lines[1].rpartition("line ")[2] != lines[2].rpartition("line ")[2]
        assert slowest < 1.0, "nothing was started that cannot end"
        assert stuck <= 2


def own_branches() -> None:
    """A cell's own calls may stand in different lines."""
    if dist.get_rank() == 0:
        dist.broadcast(torch.ones(3), 0)
    else:
        dist.broadcast(torch.zeros(3), 0)
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = [torch.empty(number + 1) for number in range(size)]
    dist.all_gather(parts, torch.ones(rank + 1))
    dist.reduce_scatter(torch.empty(rank + 1), [torch.ones(number + 1) for number in range(size)])
    if rank == 0:
        dist.send(torch.ones(3), 1)
    elif rank == 1:
        dist.recv(torch.ones(3), 0)
    things: list[Any] = [None] * size
    dist.all_gather_object(things, "x" * rank)
    assert things == ["x" * number for number in range(size)]


def different_on_purpose() -> None:
    """Ranks that are not in lockstep: collectives of one operation from anywhere."""
    other_line(dist.get_rank() == 0)


def left_alone() -> tuple[str, dict[str, int]]:
    ended = watched(own_branches)
    names = comm.trace.summary().calls
    different_on_purpose()
    return ended, names


def test_what_ranks_may_do_differently() -> None:
    for ended, names in run_ranks(3, left_alone):
        assert ended == "ended"
        assert not any("end of the cell" in name for name in names)


def ended_from_outside(rounds: int) -> list[str]:
    """One rank never comes; the others are told so while they compare, and the next cell finds nothing of it."""
    outcomes = []
    for turn in range(rounds):
        if dist.get_rank() == 0:
            comm.abort("rank 0 ended in ValueError, line 5")
            outcomes.append("")
        else:
            timer = threading.Timer(0.01, comm.abort, ["rank 0 ended in ValueError, line 5"])
            timer.start()
            outcomes.append(watched(lambda turn=turn: dist.all_reduce(torch.ones(3, 3)) if turn % 2 else None))  # type: ignore[misc]
            timer.join()
        comm.renew()
        assert watched(own_branches) == "ended"
    return [*outcomes, str(len(state.stuck))]


def test_an_abort_ends_the_comparison_and_says_where_the_rank_was() -> None:
    for rank, (meeting, call, *_, stuck) in enumerate(run_ranks(3, ended_from_outside, 10)):
        assert stuck == "0"
        if rank:
            assert meeting == "PeerFailed: rank 0 ended in ValueError, line 5; this rank was waiting at the end of the cell"
            assert "; this rank was waiting in all_reduce #0 of 3×3, line " in call


@pytest.mark.parametrize("error", [PeerFailed("it failed", "in recv #0 of 3, line 2"), PeerFailed("it failed")])
def test_a_failed_peer_can_be_pickled(error: PeerFailed) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.wait, str(again)) == (error.reason, error.wait, str(error))


def as_a_mode(code: str) -> Callable[..., Any]:
    """`call(...)` of the code, as if a mode of nbpar had it."""
    names: dict[str, Any] = {"dist": dist, "torch": torch, "comm": comm}
    exec(compile(code, "/somewhere/nbpar/parallel/mode.py", "exec"), names)
    call: Callable[..., Any] = names["call"]
    return call


PASS = as_a_mode("""
def call(size, moment, odd):
    value = torch.full((size,), 7.0)
    with comm.moment(moment):
        dist.recv(value, 0) if odd else dist.isend(value, 1).wait()
""")


def two_lines(odd: bool) -> None:
    if odd:
        PASS(3, 5, odd)
    else:
        PASS(3, 5, odd)


MESSAGES: dict[str, tuple[Callable[[bool], Any], str]] = {  # and what the receiver says
    "fits": (lambda odd: PASS(3, 5, odd), "ended"),
    "size": (lambda odd: PASS(3 + odd, 5, odd), "rank 0 was in send #0 of 12, line"),
    "moment": (lambda odd: PASS(3, 5 + odd, odd), "after 6 operations"),
    "line": (two_lines, "rank 1 was in recv #0 of 12, line"),
    "the cell's own": (lambda odd: dist.recv(torch.ones(9), 0) if odd else dist.send(torch.ones(3), 1), "ended"),
}


def pass_messages() -> dict[str, str]:
    odd, texts = dist.get_rank() == 1, {}
    for name, (program, _) in MESSAGES.items():
        kernel = threading.Timer(1.0, comm.abort, ["rank 1 failed"])  # as the kernel does when the receiver fails
        if not odd:
            kernel.start()
        texts[name] = watched(lambda program=program: program(odd))  # type: ignore[misc]
        kernel.cancel()
        if not odd:
            kernel.join()  # it must not come into the next one
        comm.renew()
    return texts


def test_a_modes_message_must_be_the_one_that_is_waited_for() -> None:
    _, told = run_ranks(2, pass_messages)
    for name, (_, words) in MESSAGES.items():
        assert words in told[name], told[name]
        assert words == "ended" or told[name].startswith("CollectiveMismatch: ")
