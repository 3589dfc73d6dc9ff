"""Every picture is a grid: rows, columns, and a state in each cell. Plain data, drawn by text.py, table.py and widget.py.

Colours are Okabe and Ito's, which colour-blind people tell apart; each state has a glyph too, so that colour is never the
only carrier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Look:
    """How a state is drawn. paint, ink: CSS colours of the cell and of what is written on it; empty: those of the page."""

    glyph: str
    words: str
    paint: str = ""
    ink: str = ""


BLACK, WHITE = "#000000", "#ffffff"
LOOKS = {
    "none": Look("·", "nothing"),
    "own": Look("■", "held here only", "#0072B2", WHITE),
    "replica": Look("▨", "replica: the same on each of these ranks", "#56B4E9", BLACK),
    "part": Look("▥", "a part of it", "#009E73", BLACK),
    "rows": Look("▤", "rows of the batch", "#009E73", BLACK),
    "forward": Look("F", "forward", "#0072B2", WHITE),
    "backward": Look("B", "backward", "#E69F00", BLACK),
    "update": Look("U", "update", "#009E73", BLACK),
    "compute": Look("P", "other Python", "#F0E442", BLACK),
    "communicate": Look("C", "communicate", "#CC79A7", BLACK),
    "wait": Look("–", "wait", "#BBBBBB", BLACK),
    "done": Look("✓", "done", "#009E73", BLACK),
    "error": Look("!", "failed", "#D55E00", BLACK),
    # amounts, from small to the largest of a picture
    "level1": Look("░", "little", "#DEEBF7", BLACK),
    "level2": Look("▒", "some", "#9ECAE1", BLACK),
    "level3": Look("▓", "much", "#4292C6", BLACK),
    "level4": Look("█", "most", "#084594", WHITE),
}


@dataclass(frozen=True)
class Cell:
    """state: a key of LOOKS. text: written instead of the state's glyph. label: what it says when asked."""

    state: str = "none"
    text: str = ""
    label: str = ""

    @property
    def shown(self) -> str:
        return self.text or LOOKS[self.state].glyph


NOTHING = Cell()


@dataclass(frozen=True)
class Grid:
    """title: a sentence that needs no caption. corner: what rows and columns are. notes: what is written beside each row.

    name: the panel's short name, in tabs and options. footer: a line below. legend: states that are explained below.
    """

    name: str
    title: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    footer: str = ""
    explained: bool = True

    def __post_init__(self) -> None:
        if len(self.cells) != len(self.rows) or any(len(row) != len(self.columns) for row in self.cells):
            raise ValueError(f"{self.name}: cells are not {len(self.rows)} rows of {len(self.columns)}")

    @property
    def legend(self) -> list[Look]:
        """The looks that need a word: those of the states used, but plain amounts."""
        used = {cell.state for row in self.cells for cell in row}
        return [LOOKS[s] for s in LOOKS if s in used and s != "none" and not s.startswith("level")] if self.explained else []

    def state(self) -> dict[str, Any]:
        """For the page: equal neighbours as [count, state, text, label], empty ends left out."""
        return {
            "name": self.name,
            "title": self.title,
            "corner": self.corner,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "cells": [[packed(count, cell) for count, cell in runs(row)] for row in self.cells],
            "notes": list(self.notes),
            "footer": self.footer,
            "legend": [[look.glyph, look.words, look.paint, look.ink] for look in self.legend],
        }


def packed(count: int, cell: Cell) -> list[Any]:
    full = [count, cell.state, cell.text, cell.label]
    while not full[-1]:
        full.pop()
    return full


def runs(row: Sequence[Cell]) -> Iterator[tuple[int, Cell]]:
    """Equal neighbours as (how many, which)."""
    for cell, group in groupby(row):
        yield len(list(group)), cell


def level(amount: float, largest: float) -> str:
    """The state that stands for an amount between 0 and the largest of the picture."""
    if amount <= 0 or largest <= 0:
        return "none"
    return f"level{min(4, 1 + int(4 * amount / largest * 0.9999))}"


def shorten(name: str, width: int) -> str:
    """A name in at most `width` characters; its end says more than its middle."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def palette() -> dict[str, list[str]]:
    """For the page: glyph, words, paint and ink by state."""
    return {state: [look.glyph, look.words, look.paint, look.ink] for state, look in LOOKS.items()}


def bar(share: float, width: int = 20) -> str:
    """'███▌      ' for a share between 0 and 1."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def joined(parts: Iterable[str]) -> str:
    return " · ".join(part for part in parts if part)
