"""A running cell: a row a rank with its phase, progress, memory, traffic and last line; which rank is slowest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbpar.display.closing import duration, size_of
from nbpar.display.grid import LOOKS, Cell, Grid, bar, shorten
from nbpar.display.output import Lines
from nbpar.ranks.pulse import Pulse

LINE = 60  # characters of a line of output


class Live:
    """What is known of the ranks of a running cell. hosts: by rank of the world, if there are several."""

    def __init__(self, ranks: tuple[int, ...], hosts: Sequence[str] = ()) -> None:
        self.hosts = hosts
        self.names = [f"{rank} on {hosts[rank]}" if hosts else str(rank) for rank in ranks]
        self.pulses: dict[int, Pulse] = {rank: Pulse() for rank in ranks}
        self._told: dict[int, Sequence[Pulse]] = {rank: (pulse,) for rank, pulse in self.pulses.items()}
        self.lines = Lines(ranks)
        self.heard = False

    def feed(self, rank: int, pulses: Sequence[Pulse]) -> None:
        """What a rank tells, oldest first."""
        self._told[rank], self.pulses[rank] = pulses, pulses[-1]
        self.heard = True

    def finish(self, failed: Mapping[int, bool]) -> None:
        """The cell has ended. failed: whether it did so in an exception, by rank."""
        for rank, pulse in self.pulses.items():
            self.feed(rank, (pulse._replace(phase="error" if failed.get(rank, True) else "done"),))
        self.lines.close()

    def pictures(self) -> list[tuple[list[list[Any]], str]]:
        """For the page: rows and summary of the moments that ranks have told of last, oldest first."""
        moments = max(map(len, self._told.values()))
        at = [{rank: told[max(-len(told), k)] for rank, told in self._told.items()} for k in range(-moments, 0)]
        return [(self.rows(pulses), summary(pulses)) for pulses in at]

    def rows(self, pulses: Mapping[int, Pulse]) -> list[list[Any]]:
        """[phase, progress in words, share done in ‰ or -1, steps a second, memory, sent, busy in %, last line]."""
        shown = phases(pulses)
        return [
            [
                shown[rank],
                progress(pulse),
                -1 if (share := done(pulse)) is None else round(share * 1000),
                round(pulse.rate, 1),
                size_of(pulse.memory) if pulse.memory else "",
                size_of(pulse.sent),
                round(pulse.busy * 100),
                shorten(self.lines.last(rank), LINE),
            ]
            for rank, pulse in pulses.items()
        ]

    def grid(self) -> Grid:
        """How the ranks ended, as a table."""
        cells = []
        for row in self.rows(self.pulses):
            phase, words, share, rate, memory, sent, busy, line = row
            cells.append(
                (
                    Cell(phase, f"{LOOKS[phase].glyph} {LOOKS[phase].words}"),
                    Cell("none", f"{words} {bar(share / 1000, 8)} {share / 10:.0f}%" if share >= 0 else words or "–"),
                    Cell("none", f"{rate}/s" if rate else "–"),
                    Cell("none", memory or "–"),
                    Cell("none", sent),
                    Cell("none", f"{busy}%"),
                    Cell("none", line or "–"),
                )
            )
        seconds = max(pulse.seconds for pulse in self.pulses.values())
        return Grid(
            "live",
            f"What the ranks did in {duration(seconds)} (measured)",
            "rank",
            tuple(f"rank {name}" for name in self.names),
            ("phase", "progress", "steps", "memory", "sent", "busy", "last line"),
            tuple(cells),
            footer=summary(self.pulses),
            explained=False,
        )


def phases(pulses: Mapping[int, Pulse]) -> dict[int, str]:
    """Each rank's phase; one that is in a call while another still computes waits for it."""
    computing = any(pulse.phase not in ("communicate", "done", "error") for pulse in pulses.values())
    return {rank: "wait" if pulse.phase == "communicate" and computing else pulse.phase for rank, pulse in pulses.items()}


def summary(pulses: Mapping[int, Pulse]) -> str:
    """The slowest rank and by how much: the one that waits least for the others. Empty before all have told something."""
    if len(pulses) < 2 or not all(pulse.seconds for pulse in pulses.values()):
        return ""
    busy = {rank: pulse.busy for rank, pulse in pulses.items()}
    slowest = max(busy, key=lambda rank: busy[rank])
    mean = sum(busy.values()) / len(busy)
    excess = busy[slowest] / mean - 1 if mean else 0.0
    if excess < 0.02:
        return "the ranks are evenly busy"
    return f"rank {slowest} is the slowest: it computes {excess:.0%} more than the ranks' mean"


def done(pulse: Pulse) -> float | None:
    return 1.0 if pulse.phase == "done" and pulse.fraction is not None else pulse.fraction


def progress(pulse: Pulse) -> str:
    """'2/10 · 31/94': turns of the loops, each with its length where it has one; else the optimiser's steps."""
    turns = [f"{turn}/{length}" if length else f"{turn}" for turn, length in pulse.loops if turn]
    return " · ".join(turns) or (f"step {pulse.steps}" if pulse.steps else "")
