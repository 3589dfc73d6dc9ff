"""Measured time × ranks: what each rank did when, from its phases and the trace of its calls."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from nbpar.display.closing import duration, size_of
from nbpar.display.grid import NOTHING, Cell, Grid, joined
from nbpar.display.traffic import SENDS, Traffic
from nbpar.plan.schedule import Span

PHASES = ("forward", "backward", "update")
BINS = 60  # columns of the grid
MOST = 6000  # spans that a page is sent


@dataclass(frozen=True)
class Timeline:
    """begin, end: seconds, by rank. phases: `ranks.phases.Phases.columns()` by rank. predicted: the plan's share of waiting."""

    begin: Mapping[int, float]
    end: Mapping[int, float]
    phases: Mapping[int, Mapping[str, Any]]
    traffic: Traffic = field(repr=False)
    predicted: float | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self.begin)

    @property
    def start(self) -> float:
        return min(self.begin.values(), default=0.0)

    def steps(self) -> list[tuple[float, float]]:
        """(start, end) of each training step: from one optimiser step of the first rank to the next. At least one."""
        first = self.ranks[0]
        columns = self.phases.get(first)
        ends = [self.begin[first]]
        if columns is not None and len(columns["phase"]):
            ends += columns["end"][columns["phase"] == PHASES.index("update")].tolist()
        return list(pairwise(ends)) or [(self.start, max(self.end.values()))]

    def window(self, first: int = -3, count: int = 3) -> tuple[float, float]:
        """Start and end of so many steps; negative: from the end."""
        steps, first = self.steps(), self._at(first)
        return steps[first][0], steps[min(first + count, len(steps)) - 1][1]

    def passes(self, steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """(start of the first forward, end of the last backward) over all ranks in each of these steps: what a plan is about."""
        begins, ends = (np.array(side) for side in zip(*steps, strict=True))
        first, last = ends.copy(), begins.copy()
        for columns in self.phases.values():
            middle = (columns["start"] + columns["end"]) / 2
            step = np.searchsorted(ends, middle)
            taken = (columns["phase"] != PHASES.index("update")) & (middle >= begins[0]) & (step < len(steps))
            np.minimum.at(first, step[taken], columns["start"][taken])
            np.maximum.at(last, step[taken], columns["end"][taken])
        return list(zip(first.tolist(), last.tolist(), strict=True))

    def waited(self, first: int = -3, count: int = 3) -> float:
        """The share of the forward and backward passes of some steps in which ranks wait, beside which `predicted` can be put."""
        passes = [(a, b) for a, b in self.passes(self.steps()[self._at(first) :][:count]) if b > a]
        whole = sum(b - a for a, b in passes) * len(self.ranks)
        waits = [
            min(span.end, b) - max(span.start, a)
            for rank in self.ranks
            for a, b in passes
            for span in self.spans(rank, a, b)
            if span.phase == "wait"
        ]
        return sum(waits) / whole if whole else 0.0

    def _at(self, first: int) -> int:
        """A step's number; negative: from the end."""
        total = len(self.steps())
        return max(0, min(first if first >= 0 else total + first, total - 1))

    def spans(self, rank: int, start: float = -np.inf, end: float = np.inf) -> list[Span]:
        """What a rank did, without overlaps, in order: phases, and within them communication and waiting."""
        blocked = [*self._blocked(rank, start, end)]
        base = list(self._phases(rank, start, end))
        spans = blocked[:]
        for span in base:
            spans += without(span, blocked)
        return sorted(spans, key=lambda span: span.start)

    def _phases(self, rank: int, start: float, end: float) -> Iterator[Span]:
        columns = self.phases.get(rank)
        if columns is None:
            return
        inside = (columns["end"] > start) & (columns["start"] < end)
        for phase, a, b in zip(*(columns[name][inside].tolist() for name in ("phase", "start", "end")), strict=True):
            yield Span(rank, PHASES[phase], max(a, start), min(b, end))

    def _blocked(self, rank: int, start: float, end: float) -> Iterator[Span]:
        mine = self.traffic.of(rank)
        inside = (mine["end"] > start) & (mine["start"] < end) & (mine["operation"] != SENDS)
        names = ("start", "arrived", "end", "operation", "bytes", "line", "shape")
        covered = start
        for began, arrived, ended, operation, amount, line, shape in zip(
            *(mine[name][inside].tolist() for name in names), strict=True
        ):
            a, b = max(began, covered), min(ended, end)
            if b <= a:
                continue
            covered, late = b, min(max(arrived, a), b)
            label = joined([operation, shape, size_of(amount) if amount else "", f"line {line}" if line else ""])
            if late > a:
                yield Span(rank, "wait", a, late, label)
            if b > late:
                yield Span(rank, "communicate", late, b, label)

    def shares(self, start: float, end: float) -> dict[str, float]:
        """Mean share over the ranks of a window that went into each phase; `compute` is what is left."""
        whole = (end - start) * len(self.ranks) or 1.0
        found = dict.fromkeys((*PHASES, "communicate", "wait"), 0.0)
        for rank in self.ranks:
            for span in self.spans(rank, start, end):
                found[span.phase] += (span.end - span.start) / whole
        return {**found, "compute": max(0.0, 1.0 - sum(found.values()))}

    def grid(self, first: int = -3, count: int = 3) -> Grid:
        """Time × ranks over a window of steps; in each cell what took most of that time."""
        start, end = self.window(first, count)
        total, at = len(self.steps()), self._at(first)
        shares = self.shares(start, end)
        which = f"steps {at + 1}–{min(at + count, total)} of {total}" if total > 1 else "the whole cell"
        return Grid(
            "timeline",
            f"What each rank did when (measured): {which}, {duration(end - start)}; a column is {duration((end - start) / BINS)}",
            "rank \\ time",
            tuple(f"rank {rank}" for rank in self.ranks),
            tuple(duration((end - start) * k / BINS) for k in range(BINS)),
            tuple(tuple(self._bins(rank, start, end)) for rank in self.ranks),
            footer=self.summary(shares, self.waited(first, count)),
        )

    def summary(self, shares: Mapping[str, float], waited: float) -> str:
        parts = [f"{name if name != 'compute' else 'other Python'} {share:.0%}" for name, share in shares.items()]
        parts[4] += " (measured)"
        if self.predicted is not None:
            parts[4] += f"; of forward and backward alone {waited:.0%}, {self.predicted:.0%} predicted"
        return joined(parts)

    def _bins(self, rank: int, start: float, end: float) -> Iterator[Cell]:
        width = (end - start) / BINS or 1.0
        time = [dict[str, float]() for _ in range(BINS)]
        for span in self.spans(rank, start, end):
            first, last = int((span.start - start) / width), int((span.end - start) / width)
            for k in range(max(0, first), min(BINS - 1, last) + 1):
                part = min(span.end, start + (k + 1) * width) - max(span.start, start + k * width)
                time[k][span.phase] = time[k].get(span.phase, 0.0) + part
        begun, ended = self.begin[rank], self.end[rank]
        for k, amounts in enumerate(time):
            middle = start + (k + 0.5) * width
            rest = width - sum(amounts.values())
            if begun <= middle <= ended:
                amounts["compute"] = amounts.get("compute", 0.0) + rest
            state = max(amounts, key=lambda name: amounts[name], default="")
            yield Cell(state) if state else NOTHING

    def state(self) -> dict[str, Any]:
        """For the page: the last steps that fit, each span as [start, length, phase, label] in µs from the first of them."""
        steps = self.steps()
        at = len(steps) - 1
        size = self._count(*steps[at])
        while at and size + (more := self._count(*steps[at - 1])) <= MOST:
            at, size = at - 1, size + more
        start, end = steps[at][0], steps[-1][1]
        labels: dict[str, int] = {}
        rows = []
        for rank in self.ranks:
            rows.append([
                [round((s.start - start) * 1e6), round((s.end - s.start) * 1e6), s.phase, labels.setdefault(s.label, len(labels))]
                for s in self.spans(rank, start, end)[:MOST]
            ])  # fmt: skip
        return {
            "ranks": list(self.ranks),
            "first": at,
            "total": len(steps),
            "steps": [round((b - start) * 1e6) for _, b in steps[at:]],
            "rows": rows,
            "labels": list(labels),
            "passes": [[round((a - start) * 1e6), round((b - start) * 1e6)] for a, b in self.passes(steps[at:])],
            "predicted": self.predicted,
        }

    def _count(self, start: float, end: float) -> int:
        """About how many spans a window has."""
        calls = self.traffic.columns["start"]
        count = int(((calls >= start) & (calls < end)).sum())
        for columns in self.phases.values():
            count += int(((columns["start"] >= start) & (columns["start"] < end)).sum())
        return 2 * count

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write all spans as a trace that chrome://tracing and ui.perfetto.dev open. One row a rank, times in µs."""
        events: list[dict[str, Any]] = []
        for rank in self.ranks:
            events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}})
            for span in self.spans(rank):
                ts, dur = (span.start - self.start) * 1e6, (span.end - span.start) * 1e6
                event = {"ph": "X", "name": span.phase, "cat": span.phase, "pid": 0, "tid": rank, "ts": ts, "dur": dur}
                events.append({**event, "args": {"what": span.label}} if span.label else event)
        with open(path, "w") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


def without(span: Span, blocked: Sequence[Span]) -> Iterator[Span]:
    """What is left of a span outside others, which are in order and apart."""
    at = span.start
    for other in blocked:
        if other.end <= at:
            continue
        if other.start >= span.end:
            break
        if other.start > at:
            yield Span(span.rank, span.phase, at, other.start, span.label)
        at = max(at, other.end)
    if at < span.end:
        yield Span(span.rank, span.phase, at, span.end, span.label)
