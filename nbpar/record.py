"""The last cell's record: plan, trace, traffic and figures as data and pandas frames, and its panels. `nbpar.last()`"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nbpar.display import aggregation, output
from nbpar.display.live import Live
from nbpar.display.panels import NAMES, Panels, Section, split_section, what_if
from nbpar.display.timeline import PHASES, Timeline
from nbpar.display.traffic import Traffic, join

if TYPE_CHECKING:
    from nbpar.check.compare import Verdict
    from nbpar.plan.plan import Plan
    from nbpar.run import Record

_last: Last | None = None


@dataclass(frozen=True)
class Last:
    """What is known of a finished cell. A notebook shows it as panels.

    record: replies and wall time. live: the ranks' last pulses and lines, None for a quiet cell.
    """

    record: Record
    live: Live | None = None
    _plan: Callable[[bool], Plan | None] = field(default=lambda _: None, repr=False)

    @cached_property
    def plan(self) -> Plan | None:
        """Who holds which layer and rows; None if the cell split no model."""
        return self._plan(False)

    @property
    def check(self) -> Verdict | None:
        """How far the ranks are from one process, if the cell was to be compared."""
        first = next(iter(self.record.replies.values()), None)
        return first.details.get("check") if first else None

    @cached_property
    def prediction(self) -> Plan | None:
        """The plan with what it costs, where the notebook holds a batch to reckon with."""
        return self._plan(True)

    @cached_property
    def traffic(self) -> Traffic:
        """All calls between ranks."""
        return join({rank: reply.traffic for rank, reply in self.record.replies.items()})

    @cached_property
    def timeline(self) -> Timeline:
        """What each rank did when: phases of training and calls to others, in seconds on the host's clock."""
        begin, end = {}, {}
        for rank, reply in self.record.replies.items():
            columns = self.traffic.of(rank)
            begin[rank] = reply.pulse.started if reply.pulse else float(min(columns["start"], default=0.0))
            end[rank] = begin[rank] + reply.seconds
        phases = {rank: reply.phases for rank, reply in self.record.replies.items() if reply.phases is not None}
        return Timeline(begin, end, phases, self.traffic)

    def _predicted(self) -> float | None:
        """The share of waiting that the plan foresees, where it knows enough to."""
        plan = self.plan if self.plan is None or self.plan.mesh.model == 1 else self.prediction
        return plan.waiting if plan is not None and plan.figures.rows and (plan.spans or plan.mesh.model == 1) else None

    @property
    def calls(self) -> Any:
        """The calls between ranks as a pandas DataFrame: a row a call and rank; seconds on the host's clock, bytes handed over."""
        return self.traffic.frame()

    @property
    def spans(self) -> Any:
        """What ranks did when, as a pandas DataFrame: rank, phase, start, end, label; seconds from the cell's start."""
        import pandas

        rows = [
            (s.rank, s.phase, s.start - self.timeline.start, s.end - self.timeline.start, s.label)
            for rank in self.timeline.ranks
            for s in self.timeline.spans(rank)
        ]
        return pandas.DataFrame(rows, columns=["rank", "phase", "start", "end", "label"])

    @property
    def matrix(self) -> Any:
        """Bytes from rank (row) to rank (column), as a pandas DataFrame of ranks × ranks."""
        import pandas

        return pandas.DataFrame(self.traffic.matrix(len(self.record.replies)))

    @property
    def figures(self) -> dict[str, Any]:
        """seconds (wall time in the kernel), ranks, steps, calls, bytes between ranks, bytes_in and bytes_out between kernel
        and ranks, and shares of the ranks' time (share_forward, share_wait, …; 0 to 1), in one dict of plain numbers."""
        shares = self.timeline.shares(self.timeline.start, max(self.timeline.end.values(), default=0.0))
        return {
            "seconds": self.record.seconds,
            "ranks": len(self.record.replies),
            "steps": max((reply.pulse.steps for reply in self.record.replies.values() if reply.pulse), default=0),
            "calls": len(self.traffic),
            "bytes": self.traffic.moved,
            "bytes_in": self.record.bytes_in,
            "bytes_out": self.record.bytes_out,
            **{f"share_{name}": shares[name] for name in (*PHASES, "communicate", "wait", "compute")},
        }

    @property
    def output(self) -> list[tuple[tuple[int, ...], str]]:
        """(ranks, line): what was printed, equal lines of several ranks once."""
        return output.folded(self.live.lines.by_rank) if self.live else []

    def export_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline for chrome://tracing or ui.perfetto.dev, as JSON. Raises OSError."""
        self.timeline.export(path)

    def panels(self, names: Sequence[str] = NAMES, *, opened: bool = True) -> Panels:
        """Some of: split, live, timeline, aggregation, what-if, output. opened: whether the split is unfolded."""
        makers = {
            "split": lambda: self._split(opened),
            "live": self._live,
            "timeline": self._timeline,
            "aggregation": self._aggregation,
            "what-if": self._what_if,
            "output": self._output,
        }
        sections = [makers[name]() for name in NAMES if name in names]
        return Panels(tuple(section for section in sections if section is not None))

    def _split(self, opened: bool) -> Section | None:
        return None if self.plan is None else split_section(self.plan, opened=opened, hosts=self.live.hosts if self.live else ())

    def _live(self) -> Section | None:
        if self.live is None or not self.live.heard:
            return None
        return Section("live", "Ranks: phase, progress, memory, traffic", (self.live.grid(),), {})

    def _timeline(self) -> Section | None:
        if not any(len(columns["phase"]) for columns in self.timeline.phases.values()) and not len(self.traffic):
            return None
        timeline = replace(self.timeline, predicted=self._predicted())
        return Section("timeline", "Timeline: what each rank did when (measured)", (timeline.grid(),), timeline.state())

    def _aggregation(self) -> Section | None:
        if not len(self.traffic):
            return None
        grids = aggregation.grids(self.traffic, max(self.record.replies) + 1)
        return Section("aggregation", "Aggregation: who sent what to whom (measured)", tuple(grids))

    def _what_if(self) -> Section | None:
        plan = self.prediction
        if plan is None or plan.columns or not any(layer.work for layer in plan.layers):
            return None
        return what_if(plan)

    def _output(self) -> Section | None:
        lines = self.output
        return Section("output", f"Output by rank: {len(lines)} lines", (), output.state(lines)) if lines else None

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self.panels().bundle()


def keep(last: Last) -> Last:
    """Makes it what `last()` gives."""
    global _last
    _last = last
    return last


def last() -> Last | None:
    """The record of the last parallel cell of this notebook, or None."""
    return _last
