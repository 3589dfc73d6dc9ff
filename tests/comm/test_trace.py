"""What is recorded of each call, on ranks and, where no ranks are needed, on a Trace by itself."""

from __future__ import annotations

import functools
import math
import threading
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbpar import comm
from nbpar.comm.trace import Trace
from tests.ranks import run_ranks

CELL = """
import torch, torch.distributed as dist
x = torch.ones(2, 3)
dist.all_reduce(x)
def helper():
    dist.broadcast(x, src=0)
helper()
if dist.get_rank() == 0:
    dist.send(x, dst=1)
else:
    dist.recv(x, src=0)
pair.backward()
dist.all_reduce(x.double(), group=group)
"""


def run_cell() -> dict[str, Any]:
    module = DistributedDataParallel(nn.Linear(5, 1))
    group = dist.new_group([0, 1])
    comm.trace.start({"<cell>"})
    before = time.perf_counter()
    exec(compile(CELL, "<cell>", "exec"), {"pair": module(torch.ones(2, 5)).sum(), "group": group})
    after = time.perf_counter()
    columns = comm.trace.columns()
    assert (columns["start"] >= before).all() and (columns["end"] <= after).all()
    assert (columns["end"] > columns["start"]).all()
    names = {key: np.array(columns[f"{key}_names"])[columns[key]].tolist() for key in ("group", "operation", "shape", "dtype")}
    rest = {key: columns[key].tolist() for key in ("bytes", "line", "peer", "sequence")}
    return {**names, **rest, "members": columns["members"], "summary": comm.trace.summary()}


def wait_and_look() -> list[Any]:
    """What another thread sees of a rank that waits."""
    comm.trace.start(lambda filename: filename == __file__)
    seen: list[Any] = [comm.trace.current()]
    if dist.get_rank() == 0:
        arrived = threading.Event()

        def look() -> None:
            while (call := comm.trace.current()) is None or call.seconds < 0.05:
                time.sleep(0.005)
            seen.append(call)
            arrived.set()

        threading.Thread(target=look).start()
        dist.recv(torch.ones(4), src=1)
        assert arrived.is_set()
    else:
        time.sleep(0.3)
        dist.send(torch.ones(4), dst=0)
    seen.append(comm.trace.current())
    return seen


def posted_ahead() -> tuple[bool, bool]:
    """Whether a receive that was posted before the message was sent begins when it is waited for, and one that nobody waits for
    when it is over."""
    other = 1 - dist.get_rank()
    comm.trace.start()
    rooms = [torch.zeros(1), torch.zeros(1)]
    works: list[Any] = [dist.irecv(room, src=other) for room in rooms]
    sent = [dist.isend(torch.ones(1), dst=other) for _ in rooms]
    dist.barrier()
    asked = time.perf_counter()
    works[0].wait()
    while not works[1].is_completed():
        pass
    for work in sent:
        work.wait()
    columns = comm.trace.columns()
    starts = columns["start"][columns["operation"] == columns["operation_names"].index("recv")]
    return tuple((starts > asked).tolist())


def on_ranks() -> tuple[dict[str, Any], list[Any], tuple[bool, bool]]:
    return run_cell(), wait_and_look(), posted_ahead()


@functools.cache
def results() -> list[Any]:
    return run_ranks(2, on_ranks)


def test_a_receive_that_was_posted_ahead_begins_when_it_is_waited_for() -> None:
    assert [ahead for _, _, ahead in results()] == [(True, True)] * 2


def test_calls_of_a_cell_are_recorded_with_its_lines() -> None:
    (cell, seen, _), (other, _, _) = results()
    paired = ["send", "recv"]
    for rank, record in enumerate((cell, other)):
        assert record["operation"] == ["all_reduce", "broadcast", paired[rank], "all_reduce", "all_reduce"]
        assert record["line"] == [4, 6, 9 if rank == 0 else 11, 12, 13]
        assert record["shape"] == ["2×3", "2×3", "2×3", "6", "2×3"]
        assert record["dtype"] == [*["float32"] * 4, "float64"]
        assert record["bytes"] == [24, 0 if rank else 24, 0 if rank else 24, 24, 48]
        assert record["peer"] == [-1, 0, 1 - rank, -1, -1]
        assert record["sequence"] == [0, 1, 0, 2, 0], "a point-to-point call does not shift the collectives' count"
        assert record["group"][:4] == [record["group"][0]] * 4 and record["group"][4] != record["group"][0]
        assert record["members"] == {name: [0, 1] for name in record["group"]}
        assert record["summary"].calls == {"all_reduce": 3, "broadcast": 1, paired[rank]: 1}
        assert record["summary"].bytes == sum(record["bytes"])
        assert record["summary"].seconds > 0

    idle, call, idle_again = seen
    assert idle is None and idle_again is None
    assert (call.operation, call.shape, call.dtype, call.peer) == ("recv", (4,), "float32", 1)
    assert call.line > 0 and call.seconds >= 0.05


def test_memory_is_bounded_and_the_newest_calls_are_kept() -> None:
    trace = Trace(limit=8)
    trace.start()
    for number in range(20):
        trace.end(trace.begin("g", "all_reduce", torch.empty(number), 4 * number))
    columns = trace.columns()
    assert columns["bytes"].tolist() == [4 * number for number in range(12, 20)]
    assert columns["sequence"].tolist() == list(range(12, 20))
    assert trace.summary().calls == {"all_reduce": 8}


def test_a_new_cell_starts_empty_and_a_late_end_does_not_disturb_it() -> None:
    trace = Trace(limit=8)
    trace.start()
    late = trace.begin("g", "all_reduce", torch.empty(1), 4)
    trace.start()
    trace.begin("g", "barrier", torch.empty(0), 0)
    trace.end(late)
    columns = trace.columns()
    assert columns["operation_names"] == ["barrier"] and len(columns["start"]) == 1
    assert math.isnan(columns["end"][0])
    for _ in range(8):
        trace.begin("g", "barrier", torch.empty(0), 0)
    trace.end(late)
    assert np.isnan(trace.columns()["end"]).all()


def test_seconds_count_overlapping_calls_once() -> None:
    trace = Trace(limit=8)
    trace.start()
    first, second = (trace.begin("g", "all_reduce", torch.empty(1), 4) for _ in range(2))
    time.sleep(0.02)
    trace.end(first)
    trace.end(second)
    columns = trace.columns()
    assert trace.summary().seconds <= columns["end"].max() - columns["start"].min() + 1e-9
    assert trace.summary().seconds >= 0.02


def test_an_empty_trace_has_columns_and_a_summary() -> None:
    trace = Trace(limit=8)
    assert len(trace.columns()["start"]) == 0
    assert trace.summary().seconds == 0
    assert trace.current() is None


def test_a_message_that_nobody_waits_for_is_no_wait() -> None:
    trace = Trace(limit=8)
    trace.start()
    sent = trace.begin("0", "send", torch.ones(2), 8, peer=1)
    assert trace.current() is None
    reduced = trace.begin("0", "all_reduce", torch.ones(2), 8)
    assert (call := trace.current()) and call.operation == "all_reduce"
    trace.end(reduced)
    trace.waiting = sent
    assert (call := trace.current()) and call.operation == "send" and call.blocks


def test_the_oldest_unfinished_call_is_found_look_after_look() -> None:
    trace = Trace(limit=8)
    trace.start()
    for round in range(20):  # more calls than are kept
        first, second = (trace.begin("g", name, torch.ones(2), 8) for name in ("all_reduce", "broadcast"))
        assert (call := trace.current()) and (call.operation, call.sequence) == ("all_reduce", 2 * round)
        trace.end(first)
        assert (call := trace.current()) and (call.operation, call.sequence) == ("broadcast", 2 * round + 1)
        trace.end(second)
        assert trace.current() is None
    trace.start()
    assert trace.current() is None


def test_waiting_is_timed() -> None:
    trace = Trace(limit=8)
    trace.start()
    assert trace.waited == 0
    trace.waiting = trace.begin("0", "all_reduce", torch.ones(2), 8)
    first = trace.waited
    assert 0 < first < trace.waited
    trace.waiting = None
    assert trace.waited == trace.waited > first
