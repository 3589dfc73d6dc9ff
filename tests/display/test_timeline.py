"""Traces joined over ranks, and the pictures made of them, against figures reckoned by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbpar.comm.trace import Trace
from nbpar.display import aggregation
from nbpar.display.text import text
from nbpar.display.timeline import Timeline, without
from nbpar.display.traffic import join
from nbpar.plan.schedule import Span


def trace(rank: int, *calls: tuple[str, int, float, float, int], size: int = 2) -> dict[str, Any]:
    """A rank's trace. Calls: (operation, bytes, start, end, peer), numbered as comm.trace does."""
    sequences: dict[Any, int] = {}
    numbers = []
    for operation, _, _, _, peer in calls:
        stream = (operation, peer) if operation in ("send", "recv") else "group"
        numbers.append(sequences.get(stream, 0))
        sequences[stream] = numbers[-1] + 1
    names = list(dict.fromkeys(call[0] for call in calls))
    zeros = np.zeros(len(calls), np.int32)
    return {
        "group": zeros, "group_names": ["0"],
        "operation": np.array([names.index(call[0]) for call in calls], np.int32), "operation_names": names,
        "shape": zeros, "shape_names": ["10"],
        "dtype": zeros, "dtype_names": ["float32"],
        "bytes": np.array([call[1] for call in calls]),
        "peer": np.array([call[4] for call in calls], np.int32),
        "sequence": np.array(numbers),
        "line": np.full(len(calls), 5, np.int32),
        "start": np.array([call[2] for call in calls]),
        "end": np.array([call[3] for call in calls]),
        "members": {"0": list(range(size))},
    }  # fmt: skip


def test_a_rank_waits_until_the_last_one_arrives() -> None:
    traffic = join({0: trace(0, ("all_reduce", 40, 1.0, 5.0, -1)), 1: trace(1, ("all_reduce", 40, 4.0, 5.0, -1))})
    compute, communicate, wait = traffic.shares({0: 10.0, 1: 10.0})
    assert (compute, communicate, wait) == pytest.approx((15 / 20, 2 / 20, 3 / 20))


def test_a_receive_waits_for_its_send_and_a_send_for_nobody() -> None:
    traffic = join(
        {
            0: trace(0, ("send", 40, 2.0, 9.0, 1), ("recv", 0, 2.5, 6.0, 1)),
            1: trace(1, ("recv", 0, 0.0, 3.0, 0), ("send", 40, 5.0, 5.5, 0)),
        }
    )
    _, communicate, wait = traffic.shares({0: 10.0, 1: 10.0})
    assert wait == pytest.approx((2.0 + 2.5) / 20)
    assert communicate == pytest.approx((1.0 + 1.0) / 20)
    assert traffic.matrix(2).tolist() == [[0, 40], [40, 0]]


def test_overlapping_calls_count_once() -> None:
    calls = ("all_reduce", 8, 0.0, 4.0, -1), ("all_reduce", 8, 1.0, 3.0, -1)
    traffic = join({0: trace(0, *calls, size=1)})
    assert traffic.shares({0: 4.0})[1] == pytest.approx(1.0)


def test_unfinished_calls_are_left_out() -> None:
    traffic = join({0: trace(0, ("barrier", 0, 0.0, float("nan"), -1)), 1: None})
    assert len(traffic) == 0
    assert traffic.shares({0: 1.0, 1: 1.0}) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("operation", "peer", "expected"),
    [
        ("all_reduce", -1, [[0, 90, 90], [90, 0, 90], [90, 90, 0]]),
        ("all_gather", -1, [[0, 90, 90], [90, 0, 90], [90, 90, 0]]),
        ("reduce", 0, [[0, 0, 0], [90, 0, 0], [90, 0, 0]]),
        ("gather", 1, [[0, 90, 0], [0, 0, 0], [0, 90, 0]]),
        ("all_to_all", -1, [[0, 30, 30], [30, 0, 30], [30, 30, 0]]),
        ("barrier", -1, [[0, 90, 90], [90, 0, 90], [90, 90, 0]]),
    ],
)
def test_bytes_go_where_the_operation_takes_them(operation: str, peer: int, expected: list[list[int]]) -> None:
    traffic = join({rank: trace(rank, (operation, 90, 0.0, 1.0, peer), size=3) for rank in range(3)})
    assert traffic.matrix(3).tolist() == expected


def test_a_broadcast_comes_from_its_root() -> None:
    """The others hand over nothing."""
    traffic = join({rank: trace(rank, ("broadcast", 90 if rank == 2 else 0, 0.0, 1.0, 2), size=3) for rank in range(3)})
    assert traffic.matrix(3).tolist() == [[0, 0, 0], [0, 0, 0], [90, 90, 0]]


def test_the_real_trace_can_be_read() -> None:
    import torch

    real = Trace(16)
    real.members["g"] = [0, 1]
    real.start()
    tensor = torch.zeros(3, 5)
    for _ in range(4):
        real.end(real.begin("g", "all_reduce", tensor, 60))
    traffic = join({0: real.columns(), 1: None})
    assert traffic.moved == 240
    assert traffic.columns["shape"].tolist() == ["3×5"] * 4
    assert traffic.operations()[0].calls == {0: 4}


def phases(*spans: tuple[int, float, float]) -> dict[str, Any]:
    return {
        "phase": np.array([span[0] for span in spans], np.int8),
        "start": np.array([span[1] for span in spans]),
        "end": np.array([span[2] for span in spans]),
    }


@pytest.fixture
def timeline() -> Timeline:
    """Two steps of 10 s: forward 4, backward 4 (in it an all-reduce, for which rank 0 waits 2 and rank 1 waits 0), update 1."""
    spans = [(phase, 10 * k + a, 10 * k + b) for k in range(2) for phase, a, b in ((0, 0, 4), (1, 4, 8), (2, 8.5, 9.5))]
    early = [("all_reduce", 40, 10 * k + 5.0, 10 * k + 8.0, -1) for k in range(2)]
    late = [("all_reduce", 40, 10 * k + 7.0, 10 * k + 8.0, -1) for k in range(2)]
    traffic = join({0: trace(0, *early), 1: trace(1, *late)})
    return Timeline({0: 0.0, 1: 0.0}, {0: 20.0, 1: 20.0}, {0: phases(*spans), 1: phases(*spans)}, traffic, predicted=0.25)


def test_shares_are_those_of_the_trace(timeline: Timeline) -> None:
    assert timeline.steps() == [(0.0, 9.5), (9.5, 19.5)]
    shares = timeline.shares(0.0, 20.0)
    assert shares == pytest.approx(
        {"forward": 0.4, "backward": (1 + 3) / 20, "update": 0.1, "communicate": 0.1, "wait": 0.1, "compute": 0.1}
    )


def test_waiting_is_put_beside_the_prediction_within_the_passes(timeline: Timeline) -> None:
    assert timeline.passes(timeline.steps()) == [(0.0, 8.0), (10.0, 18.0)]
    assert timeline.waited(0, 2) == timeline.waited(1, 1) == pytest.approx(2 / 16)


def test_spans_do_not_overlap(timeline: Timeline) -> None:
    for rank in (0, 1):
        spans = timeline.spans(rank)
        assert all(a.end <= b.start for a, b in pairwise(spans))
    assert [s.phase[0] for s in timeline.spans(0, 0, 10)] == ["f", "b", "w", "c", "u"]


def test_the_grid_says_what_took_most_of_each_column(timeline: Timeline) -> None:
    grid = timeline.grid(0, 2)
    states = [cell.state for cell in grid.cells[0]]
    assert states.count("forward") == pytest.approx(60 * 8 / 19.5, abs=2)
    assert states.count("wait") == pytest.approx(60 * 4 / 19.5, abs=2)
    assert "wait 10%" in grid.footer or "wait 11%" in grid.footer
    assert "of forward and backward alone 12%, 25% predicted" in grid.footer
    assert "rank 0" in text(grid)


def test_the_page_gets_the_same_spans(timeline: Timeline) -> None:
    state = json.loads(json.dumps(timeline.state()))
    assert state["total"] == 2
    waits = [row for row in state["rows"][0] if row[2] == "wait"]
    assert [length for _, length, _, _ in waits] == [2_000_000, 2_000_000]
    assert state["labels"][waits[0][3]] == "all_reduce · 10 · 40 B · line 5"


def test_hundreds_of_micro_batches_fit(timeline: Timeline) -> None:
    many = phases(*[(k % 2, k * 0.01, k * 0.01 + 0.008) for k in range(100_000)], (2, 1000.0, 1000.1))
    wide = Timeline({0: 0.0, 1: 0.0}, {0: 1001.0, 1: 1001.0}, {0: many, 1: many}, join({}))
    assert len(json.dumps(wide.state())) < 400_000
    assert len(wide.grid().columns) == 60


def test_a_trace_for_perfetto(timeline: Timeline, tmp_path: Path) -> None:
    timeline.export(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    whole = [event for event in events if event["ph"] == "X"]
    assert sum(event["dur"] for event in whole if event["name"] == "wait") == pytest.approx(4e6)
    assert {event["tid"] for event in whole} == {0, 1}


def test_what_is_left_of_a_span() -> None:
    left = without(Span(0, "forward", 0, 10), [Span(0, "wait", 2, 3), Span(0, "wait", 9, 12)])
    assert [(span.start, span.end) for span in left] == [(0, 2), (3, 9)]


def test_operations_say_what_came_from_where() -> None:
    traffic = join(
        {rank: trace(rank, ("reduce", 90, 0.0, 1.0, 0), ("broadcast", 90 * (rank == 0), 1.0, 2.0, 0), size=3) for rank in range(3)}
    )
    matrix, operations = aggregation.grids(traffic, 3)
    assert [row[0].text for row in operations.cells] == ["0-2 → 0 summed", "0 → 0-2"]
    assert matrix.notes == ("handed over 180 B", "handed over 90 B", "handed over 90 B")
