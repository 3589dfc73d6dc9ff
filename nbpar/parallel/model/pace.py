"""Which of a few ways is quickest? Each is used for some training steps of the program itself, and those are measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

from .channel import channel

Way = TypeVar("Way")
STEPS = 3  # of each way; the first may have other things in it, and does not count
SLACK = 0.05  # a few steps say nothing about less


class Pace(Generic[Way]):
    """chosen: None while it is measured. best: the shortest step of each way, in seconds, on the rank that decides. expected: a way
    that is chosen unless another is clearly quicker."""

    def __init__(self, ways: Sequence[Way], expected: Way | None = None) -> None:
        self._ways, self._expected = ways, expected
        self._times: dict[Way, list[float]] = {way: [] for way in ways}
        self._now: Way | None = None
        self._began = 0.0
        self.chosen: Way | None = None
        self.best: dict[Way, float] = {}

    def way(self) -> Way:
        """For the call that begins now: a step lasts from one training call to the next. Collective once all are measured."""
        if self.chosen is not None:
            return self.chosen
        if not torch.is_grad_enabled():
            return self._ways[0]
        now = time.perf_counter()
        if self._now is not None:
            self._times[self._now].append(now - self._began)
        self._began = now
        self._now = next((way for way in self._ways if len(self._times[way]) < STEPS), None)
        if self._now is not None:
            return self._now
        self.best = channel().decide({way: min(times[1:]) for way, times in self._times.items()})
        self.settle(min(self.best, key=lambda way: self.best[way] * (1 - SLACK * (way == self._expected))))
        return self.way()

    def settle(self, way: Way) -> None:
        """This one, without more measuring."""
        self.chosen = way
