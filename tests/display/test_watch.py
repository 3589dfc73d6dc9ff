"""The pace of a running cell's panels: not before two seconds, ten times a second, and little for many ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from nbpar.display import show, widget
from nbpar.display.watch import AFTER, Watch
from nbpar.ranks.channel import Message
from nbpar.ranks.pulse import Pulse


@dataclass
class Sent:
    """Stands for the page: (when, pictures, bytes) of each update, and how often bundles were shown."""

    now: float = 0.0
    updates: list[tuple[float, int, int]] = field(default_factory=list)
    shown: int = 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    record = Sent()

    class Page:
        def __init__(self, *_: Any) -> None: ...

        def move(self, live: Any) -> int:
            record.updates.append((record.now, len(live["pictures"]), size := len(json.dumps(live))))
            return size

        def show(self, _: Any) -> None: ...

        def bundle(self) -> Any:
            return {}, {}

    def panels(*_: Any) -> str:
        record.shown += 1
        return "place"

    monkeypatch.setattr(widget, "Page", Page)
    monkeypatch.setattr(show, "panels", panels)
    monkeypatch.setattr(show, "has_page", lambda: True)
    return record


def run(sent: Sent, ranks: int, seconds: float, line: str = "epoch 1, loss 0.123") -> Watch:
    watch = Watch(tuple(range(ranks)), ("split", "live"), lambda: None, lambda: None, asked=False)
    start = watch._late - AFTER
    for k in range(int(seconds * 20)):
        sent.now = start + k / 20
        if k % 4 == 0:
            for rank in range(ranks):
                pulses = tuple(Pulse("forward", ((3, 10), (n, 2000)), n, n / 20, 1 << 30, n * 10_000) for n in (k - 2, k))
                watch.feed(Message("progress", pulses, rank=rank))
                watch.feed(Message("output", [("stdout", f"{line} {k}\n")], rank=rank))
        watch.tick(sent.now)
    return watch


def test_nothing_before_two_seconds(sent: Sent) -> None:
    run(sent, 2, 1.9)
    assert (sent.shown, sent.updates) == (0, [])


def test_ten_times_a_second_afterwards(sent: Sent) -> None:
    run(sent, 2, 7.0)
    assert sent.shown == 1
    assert 45 <= sum(pictures for _, pictures, _ in sent.updates) <= 51


def test_nothing_is_sent_while_ranks_tell_nothing(sent: Sent) -> None:
    watch = run(sent, 2, 3.0)
    before = len(sent.updates)
    assert watch.due == float("inf")
    watch.tick(sent.now + 5.0)
    assert len(sent.updates) == before


def test_one_rank_that_tells_nothing_does_not_hold_up_the_others(sent: Sent) -> None:
    watch = run(sent, 2, 3.0)
    before = len(sent.updates)
    watch.feed(Message("progress", (Pulse(),), rank=1))
    assert watch.due < float("inf")
    watch.tick(max(watch.due, sent.now))
    assert len(sent.updates) == before + 1


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_less_than_20_kilobytes_a_second(sent: Sent, ranks: int) -> None:
    run(sent, ranks, 12.0, "a long line of output " * 20)
    assert len(sent.updates) > 10
    assert sum(size for *_, size in sent.updates) / 10.0 < 20_000
