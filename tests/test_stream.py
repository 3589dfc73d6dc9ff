from __future__ import annotations

import random

import pytest

from nbpar.display.stream import HOLD, HOLD_AT_FIRST, Fold, name_ranks


def fold(size: int = 2, *, lockstep: bool = False) -> tuple[Fold, list[str]]:
    shown: list[str] = []
    return Fold(
        range(size), lambda _, value: shown.append(value if isinstance(value, str) else repr(value)), lockstep=lockstep
    ), shown


def out(text: str) -> list[tuple[str, str]]:
    return [("stdout", text)]


@pytest.mark.parametrize(("ranks", "name"), [([0], "0"), ([0, 1], "0,1"), ([0, 1, 2], "0-2"), ([3, 0, 1, 2, 7], "0-3,7"), ([], "")])
def test_ranks_in_few_characters(ranks: list[int], name: str) -> None:
    assert name_ranks(ranks) == name


def test_equal_lines_once_and_different_ones_marked() -> None:
    f, shown = fold(3)
    for rank in range(3):
        f.feed(rank, out(f"epoch 1\nshard {min(rank, 1)}\nend\n"), 0)
    f.flush(0)
    assert "".join(shown) == "epoch 1\n[0] shard 0\n[1,2] shard 1\nend\n"


def test_a_line_more_on_one_rank_does_not_shift_the_others() -> None:
    f, shown = fold()
    f.feed(0, out("a\nb\nonly here\nc\nd\n"), 0)
    f.feed(1, out("a\nb\nc\nd\n"), 0)
    f.flush(0)
    assert "".join(shown) == "a\nb\n[0] only here\nc\nd\n"


def test_a_rank_ahead_is_shown_after_a_moment_marked_or_in_lockstep_plain() -> None:
    for lockstep, text in ((False, "[0] a\n[1] a\n"), (True, "a\n")):
        f, shown = fold(lockstep=lockstep)
        f.feed(0, out("a\n"), 0)
        f.flush(HOLD / 2)
        assert shown == []
        f.flush(HOLD * 1.1)
        assert "".join(shown) in text and shown
        f.feed(1, out("a\n"), 1)
        f.flush(1 + HOLD * 1.1)
        f.close()
        assert "".join(shown) == text


def test_ranks_that_still_import_are_waited_for_once() -> None:
    shown: list[str] = []
    f = Fold(range(2), lambda _, value: shown.append(value), lockstep=False, hold=HOLD_AT_FIRST)
    f.feed(0, out("a\nb\n"), 0)
    f.flush(HOLD * 1.1)
    assert shown == []
    f.feed(1, out("a\n"), HOLD_AT_FIRST / 2)
    f.flush(HOLD_AT_FIRST / 2)
    assert "".join(shown) == "a\n[0] b\n"  # both print now, and `b` has waited


def test_lockstep_ranks_that_differ_after_all_are_marked() -> None:
    f, shown = fold(lockstep=True)
    f.feed(0, out("a\n"), 0)
    f.flush(1)
    f.feed(1, out("b\n"), 2)
    f.flush(3)
    f.close()
    assert "".join(shown).endswith("[1] b\n")


def test_unfinished_lines_come_after_a_moment_and_go_on_where_they_were() -> None:
    f, shown = fold(lockstep=True)
    for rank in (0, 1):
        f.feed(rank, out("loading "), 0)
    f.flush(0)
    assert shown == []
    f.flush(1)
    assert "".join(shown) == "loading "
    for rank in (0, 1):
        f.feed(rank, out("done\n"), 2)
    f.flush(4)
    assert "".join(shown) == "loading done\n"


def test_progress_bars_keep_their_carriage_returns_and_one_is_enough_in_lockstep() -> None:
    f, shown = fold(lockstep=True)
    for rank in (0, 1):
        f.feed(rank, [("stderr", f"\r 10% {rank} it/s\r 20% {rank} it/s\r100% {rank}\n")], 0)
    f.flush(0)
    f.close()
    assert "".join(shown) == "\r 10% 0 it/s\r 20% 0 it/s\r100% 0\n"


def test_nothing_is_lost_or_reordered_whatever_the_chunks() -> None:
    chance = random.Random(0)
    for lockstep in (False, True):
        texts = ["".join(f"{chance.choice(['same', f'rank {rank}'])} {i}\n" for i in range(300)) for rank in range(3)]
        f, shown = fold(3, lockstep=lockstep)
        places, now = [0] * 3, 0.0
        while any(place < len(text) for place, text in zip(places, texts, strict=True)):
            rank, step = chance.randrange(3), chance.randrange(1, 60)
            f.feed(rank, out(texts[rank][places[rank] : places[rank] + step]), now)
            places[rank] += step
            now += chance.random() * 0.02
            f.flush(now)
        f.close()
        lines = "".join(shown).splitlines()
        for rank in range(3):
            mine = [line for line in lines if f"rank {rank} " in line]
            assert [line.split("] ")[-1] for line in mine] == [t for t in texts[rank].splitlines() if t.startswith("rank")]


def test_equal_text_meets_whatever_its_chunks() -> None:
    f, shown = fold(3)
    text = "".join(f"line {i}\n" for i in range(100)) + "and the end"
    for rank, size in enumerate((1, 70, len(text))):
        for start in range(0, len(text), size):
            f.feed(rank, out(text[start : start + size]), 0)
            f.flush(0)
    f.close()
    assert "".join(shown) == text


def test_one_line_that_differs_among_many() -> None:
    f, shown = fold(2)
    before, after = "".join(f"line {i}\n" for i in range(50)), "".join(f"line {i}\n" for i in range(50, 90))
    for rank in (0, 1):
        f.feed(rank, out(f"{before}mine is {rank}\n{after}"), 0)
    f.flush(0)
    assert "".join(shown) == f"{before}[0] mine is 0\n[1] mine is 1\n{after}"


def test_figures_wait_longer_for_each_other_than_lines() -> None:
    f, shown = fold()
    figure: list[tuple[str, object]] = [("display", {"data": {"text/plain": "f"}})]
    f.feed(0, figure, 0)  # type: ignore[arg-type]
    f.flush(HOLD * 5)
    assert shown == []
    f.feed(1, figure, HOLD * 6)  # type: ignore[arg-type]
    f.flush(HOLD * 6)
    assert len(shown) == 1


def test_displays_are_shown_once_if_equal() -> None:
    f, shown = fold()
    bundle = {"data": {"text/plain": "x"}, "metadata": {}}
    for rank in (0, 1):
        f.feed(rank, [("stdout", "before\n"), ("display", bundle)], 0)
    f.flush(0)
    assert shown == ["before\n", repr(bundle)]


def test_forty_thousand_lines_take_well_under_a_second_of_work() -> None:
    f, shown = fold()
    text = "".join(f"    line {i}\n" for i in range(20_000))
    for start in range(0, len(text), 10_000):
        for rank in (0, 1):
            f.feed(rank, out(text[start : start + 10_000]), 0)
        f.flush(0)
    f.close()
    assert "".join(shown) == text
