"""Panels: sections of grids under one line each, as text, as HTML without scripts, and as the state of the page's widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nbpar.display import split, whatif
from nbpar.display.grid import Grid
from nbpar.display.table import folded, table
from nbpar.display.text import text
from nbpar.plan.plan import Plan

NAMES = ("split", "live", "timeline", "aggregation", "what-if", "output")


@dataclass(frozen=True)
class Section:
    """name: of the panel. summary: the line that opens it. data: what the page draws instead of the grids, if anything."""

    name: str
    summary: str
    grids: tuple[Grid, ...] = ()
    data: Any = None
    opened: bool = True


@dataclass(frozen=True)
class Panels:
    """What is shown together. A notebook shows it as a widget, or as tables where none can run; a terminal as text."""

    sections: tuple[Section, ...]

    def text(self) -> str:
        return "\n\n".join(text(grid) for section in self.sections for grid in section.grids)

    def html(self) -> str:
        """Tables behind lines that open them."""
        return "".join(
            folded(section.summary, "".join(map(table, section.grids)), opened=section.opened)
            for section in self.sections
            if section.grids
        )

    def state(self) -> list[dict[str, Any]]:
        """For the page. Grids that it draws from data by itself are left out."""
        return [
            {
                "name": section.name,
                "summary": section.summary,
                "opened": section.opened,
                "grids": [] if section.data is not None else [grid.state() for grid in section.grids],
                "data": section.data,
            }
            for section in self.sections
        ]

    def bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """MIME bundle: widget, tables, text."""
        from nbpar.display.widget import Page

        return Page(self).bundle()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle()


@dataclass(frozen=True)
class Choice:
    """Which panels a cell shows. explicit: whether a person asked for them."""

    names: tuple[str, ...] = ("split", "live")
    explicit: bool = field(default=False, compare=False)


def split_section(plan: Plan, *, opened: bool = True, hosts: Sequence[str] = ()) -> Section:
    """hosts: of the ranks, if there are several."""
    grids = [replace(grid, columns=named(grid.columns, hosts)) for grid in split.split(plan)]
    return Section("split", "Split: which rank holds which layers and rows", tuple(grids), opened=opened)


def named(columns: tuple[str, ...], hosts: Sequence[str]) -> tuple[str, ...]:
    """'0 on a' for the rank '0'; what is no rank stays."""
    return tuple(f"{each} on {hosts[int(each)]}" if hosts and each.isdigit() else each for each in columns)


def of_plan(plan: Plan) -> Panels:
    """A plan alone: split, memory and, where there is a batch to run, what-if."""
    sections = [split_section(plan), Section("memory", "Memory: what a rank needs (predicted)", (split.memory(plan),))]
    if plan.figures.rows and (plan.figures.columns or not plan.columns):
        sections.append(what_if(plan))
    return Panels(tuple(sections))


def what_if(plan: Plan) -> Section:
    grid, state = whatif.predicted(plan)
    ways = "Other ranks and meshes" if plan.columns else "Other ranks, meshes, micro-batches and schedules"
    return Section("what-if", f"What if? {ways} (predicted)", (grid,), state)


def chosen(sections: Sequence[Section], names: Sequence[str]) -> Panels:
    """The sections asked for, in the order of NAMES."""
    return Panels(tuple(section for section in sections if section.name in names))
