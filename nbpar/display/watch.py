"""The panels of a running cell: they appear once it has run for two seconds, move ten times a second, and stay as its end.

Everything is published by the thread that waits for the cell, when the ranks have told how far they are. As they tell of two
moments at once, the page is sent two pictures at once, and shows the second a tenth of a second after the first; of many ranks it
is sent the newest only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nbpar.display import show
from nbpar.display.live import Live
from nbpar.display.panels import Panels, Section, split_section
from nbpar.ranks.channel import Message
from nbpar.ranks.pulse import PERIOD, TOGETHER

if TYPE_CHECKING:
    from nbpar.display.widget import Page
    from nbpar.plan.plan import Plan
    from nbpar.record import Last

AFTER = 2.0  # seconds
AHEAD = 0.2  # seconds before, in which ranks are asked how far they are
GATHER = 0.05  # seconds from one rank's telling to the picture, at most: ranks of one host tell at the same moments
EVERY = PERIOD * TOGETHER  # seconds between two messages
BUDGET = 16_000  # bytes a second
NEVER = float("inf")


class Watch:
    """names: the panels to show. asked: whether a person asked for them in this cell; then even a short cell shows them.

    plan: the cell's. ask: tells the ranks to say how far they are, from now on.
    """

    def __init__(
        self,
        ranks: tuple[int, ...],
        names: tuple[str, ...],
        plan: Callable[[], Plan | None],
        ask: Callable[[], None],
        *,
        asked: bool,
        hosts: Sequence[str] = (),
    ) -> None:
        self.live = Live(ranks, hosts)
        self._names, self._asked, self._plan, self._ask = names, asked, plan, ask
        self._drawn = show.has_page()
        self._late = time.monotonic() + AFTER
        self._next = 0.0 if asked else self._late
        self._ask_at = NEVER if not names else 0.0 if asked else self._late - AHEAD
        self._stage = 0  # 1: what is known before the first step is shown, 2: what moves too
        self._page: Page | None = None
        self._place = ""
        self._most = TOGETHER  # pictures in a message
        self._told: set[int] = set()  # since the last picture
        self._first = NEVER  # when the first of them did

    def feed(self, message: Message) -> None:
        """Output or a pulse of a rank."""
        if message.rank not in self.live.pulses:
            return
        if message.kind == "output":
            self.live.lines.feed(message.rank, message.header)
        else:
            self.live.feed(message.rank, message.header)
            self._told.add(message.rank)
            self._first = min(self._first, time.monotonic())

    @property
    def due(self) -> float:
        """From when on `tick` has something to do, if ranks say nothing before: seconds as of `time.monotonic()`."""
        return min(self._ask_at, self._draw_at)

    @property
    def _draw_at(self) -> float:
        if not self._drawn:
            return NEVER
        if self._stage < 2:
            return self._next
        if "live" not in self._names or self._page is None:
            return NEVER
        return max(self._next, self._first + (0.0 if len(self._told) == len(self.live.pulses) else GATHER))

    def tick(self, now: float) -> None:
        """Called over and over while the cell runs. now: `time.monotonic()`."""
        if now >= self._ask_at:
            self._ask_at = NEVER
            self._ask()
        if now < self._draw_at:
            return
        if self._stage == 2:
            self._move(now)
        else:
            self._stage = 2 if now >= self._late else 1
            self._next = self._late
            self._show(Panels(tuple(self._sections())))
        self._told.clear()
        self._first = NEVER

    def _move(self, now: float) -> None:
        assert self._page is not None
        state = self._state()
        pictures = state["pictures"] = state["pictures"][-self._most :]
        size = self._page.move(state)
        self._most = TOGETHER if TOGETHER * size / len(pictures) < BUDGET * EVERY else 1
        self._next = now + size / BUDGET

    def _sections(self) -> Iterator[Section]:
        if "split" in self._names and (plan := self._plan()) is not None:
            yield split_section(plan, opened=self._asked, hosts=self.live.hosts)
        if "live" in self._names and self._stage == 2:
            yield Section("live", "Ranks: phase, progress, memory, traffic", (self.live.grid(),), {})

    def _show(self, panels: Panels) -> None:
        """In the page; the bundle too, which is what a notebook saves and what shows where no widget runs."""
        from nbpar.display.widget import Page

        if not panels.sections:
            return
        if self._page is None:
            self._page = Page(panels, self._state())
        else:
            self._page.show(panels)
        self._place = show.panels(self._page.bundle(), self._place)

    def _state(self, *, done: bool = False) -> dict[str, Any]:
        return {"ranks": self.live.names, "pictures": self.live.pictures(), "done": done}

    def end(self, last: Last) -> None:
        """The cell has ended: what is shown becomes its true end. Panels that were asked for appear even now."""
        if not self._asked and self._page is None:
            return
        panels = last.panels(self._names, opened=self._asked)
        if not self._drawn:
            print(panels.text())
            return
        self._show(panels)
        if self._page is not None:
            self._page.live = self._state(done=True)
