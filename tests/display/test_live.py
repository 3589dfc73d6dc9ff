"""The running cell's rows, and the folded output."""

from __future__ import annotations

from nbpar.display.live import Live, phases, summary
from nbpar.display.output import Lines, folded, state
from nbpar.ranks.pulse import Pulse


def test_progress_of_nested_loops() -> None:
    assert Pulse(loops=((3, 10), (50, 100))).fraction == (2 + 49 / 100) / 10
    assert Pulse(loops=((3, 10),)).fraction == 0.2
    assert Pulse(loops=((3, 0),)).fraction is None
    assert Pulse().fraction is None


def test_a_rank_in_a_call_waits_while_another_computes() -> None:
    assert phases({0: Pulse("communicate"), 1: Pulse("backward")}) == {0: "wait", 1: "backward"}
    assert phases({0: Pulse("communicate"), 1: Pulse("communicate")}) == {0: "communicate", 1: "communicate"}


def test_the_slowest_rank_is_named() -> None:
    assert summary({0: Pulse(busy=0.5, seconds=1.0), 1: Pulse()}) == ""  # which has told nothing yet
    busy = {0: Pulse(busy=0.5, seconds=1.0), 1: Pulse(busy=0.9, seconds=1.0)}
    assert summary(busy).startswith("rank 1 is the slowest: it computes 29% more")


def test_two_moments_are_two_pictures() -> None:
    live = Live((0, 1))
    for rank, phase in ((0, "forward"), (1, "communicate")):
        live.feed(rank, [Pulse(phase, steps=1), Pulse("backward", steps=2)])
    assert [[row[:2] for row in rows] for rows, _ in live.pictures()] == [
        [["forward", "step 1"], ["wait", "step 1"]],
        [["backward", "step 2"], ["backward", "step 2"]],
    ]
    live.finish({0: False, 1: False})
    assert len(live.pictures()) == 1


def test_the_end_is_the_true_end() -> None:
    live = Live((0, 1))
    live.feed(0, [Pulse("forward", loops=((10, 10),), steps=10, seconds=2.0)])
    live.lines.feed(0, [("stdout", "epoch 1\nepoch 2")])
    live.finish({0: False, 1: True})
    ((first, second), _), *more = live.pictures()
    assert more == []
    assert first[:4] == ["done", "10/10", 1000, 5.0]
    assert first[-1] == "epoch 2"
    assert second[0] == "error"
    assert "✓ done" in live.grid().cells[0][0].text


def test_many_ranks_and_long_lines_stay_small() -> None:
    live = Live(tuple(range(64)))
    for rank in range(64):
        live.lines.feed(rank, [("stdout", "x" * 10_000)])
    assert sum(len(str(row)) for row in live.pictures()[-1][0]) < 10_000


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
