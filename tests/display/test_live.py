"""The running cell's rows, and the folded output."""

from __future__ import annotations

from nbpar.display.live import Live
from nbpar.display.output import Lines, folded, state
from nbpar.ranks.pulse import Pulse


def test_progress_of_nested_loops() -> None:
    assert Pulse(loops=((3, 10), (50, 100))).fraction == (2 + 49 / 100) / 10
    assert Pulse(loops=((3, 10),)).fraction == 0.2
    assert Pulse(loops=((3, 0),)).fraction is None
    assert Pulse().fraction is None


def test_a_rank_in_a_call_waits_while_another_computes() -> None:
    live = Live((0, 1))
    live.feed(0, Pulse("communicate"))
    live.feed(1, Pulse("backward"))
    assert live.phases() == {0: "wait", 1: "backward"}
    live.feed(1, Pulse("communicate"))
    assert live.phases() == {0: "communicate", 1: "communicate"}


def test_the_slowest_rank_is_named() -> None:
    live = Live((0, 1))
    assert live.summary() == ""
    live.feed(0, Pulse(busy=0.5))
    live.feed(1, Pulse(busy=0.9))
    assert live.summary().startswith("rank 1 is the slowest: it computes 29% more")


def test_the_end_is_the_true_end() -> None:
    live = Live((0, 1))
    live.feed(0, Pulse("forward", loops=((10, 10),), steps=10, seconds=2.0))
    live.lines.feed(0, [("stdout", "epoch 1\nepoch 2")])
    live.finish({0: False, 1: True})
    first, second = live.rows()
    assert first[:4] == ["done", "10/10", 1000, 5.0]
    assert first[-1] == "epoch 2"
    assert second[0] == "error"
    assert "✓ done" in live.grid().cells[0][0].text


def test_many_ranks_and_long_lines_stay_small() -> None:
    live = Live(tuple(range(64)))
    for rank in range(64):
        live.lines.feed(rank, [("stdout", "x" * 10_000)])
    assert sum(len(str(row)) for row in live.rows()) < 10_000


def test_equal_lines_are_folded() -> None:
    lines = Lines((0, 1, 2))
    for rank in (0, 1, 2):
        lines.feed(rank, [("stdout", f"epoch 1\nshard {rank}\n"), ("display", {"data": {}}), ("stdout", "epoch")])
        lines.feed(rank, [("stdout", " 2\n")])
    lines.close()
    found = folded(lines.by_rank)
    assert found[0] == ((0, 1, 2), "epoch 1")
    assert found[-1] == ((0, 1, 2), "epoch 2")
    assert {line for _, line in found[1:-1]} == {"shard 0", "shard 1", "shard 2"}


def test_a_bar_is_its_last_state() -> None:
    lines = Lines((0,))
    lines.feed(0, [("stderr", "10%\r50%\r")])
    assert lines.last(0) == "50%"
    lines.feed(0, [("stderr", "100%\n")])
    assert list(lines.by_rank[0]) == ["100%"]


def test_a_flood_is_cut() -> None:
    sent = state([((0,), "x" * 100)] * 5000)
    assert sum(len(line) for _, line in sent) < 100_000
    assert "nbpar.last()" in sent[0][1]
