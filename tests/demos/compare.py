"""What a demo notebook says, and whether two executions of it say the same."""

from __future__ import annotations

import math
import re
from typing import Any

from tests.notebook import ANSI, CLOSING

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TIMED = "timings"  # tag of cells that print how long something took


def said(cell: Any) -> list[str]:
    """The lines that a cell printed, its results, its exceptions' names and its panels' headings, in a steady order.

    Without what differs from run to run: closing lines, remarks on processes, which ranks' equal lines were joined.
    """
    lines: set[str] = set()
    for output in cell.get("outputs", ()):
        if output.get("name") == "stderr":
            continue
        if output.output_type == "stream":
            lines.update(line for line in output.text.splitlines() if not CLOSING.match(line) and not line.startswith("nbpar: "))
        elif output.output_type == "error":
            lines.add(output.ename)
        elif output.output_type == "execute_result":
            lines.update(output.data["text/plain"].splitlines())
        elif "--show" in cell.source:  # else panels appear where a cell happens to run for long
            lines.update(re.findall(r"<summary[^>]*>(.*?)</summary>", output.data.get("text/html", "")))
    marked = re.compile(r"^\[[\d,-]+\] ")
    return sorted({marked.sub("", ANSI.sub("", line)).rstrip() for line in lines}, key=lambda line: (words(line), line))


def words(line: str) -> str:
    """A line without its numbers and its spaces."""
    return re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip()


def same(ours: Any, kept: Any) -> None:
    """Raises AssertionError at the first cell where two executions of a notebook differ."""
    for new, old in zip(ours.cells, kept.cells, strict=True):
        assert not (difference := differs(new, old)), f"{new.source}\n\n{difference}"


def differs(ours: Any, kept: Any) -> str:
    """Where two executions of a cell differ; empty if they say the same. Numbers are the same to three digits."""
    timed = TIMED in ours.metadata.get("tags", ())
    for new, old in zip(said(ours), said(kept), strict=False):
        if words(new) != words(old) or not (timed or close(new, old)):
            return f"{new!r}, where {old!r} is kept"
    new, old = len(said(ours)), len(said(kept))
    return "" if new == old else f"{new} lines, where {old} are kept: {said(ours)}"


def close(ours: str, kept: str) -> bool:
    pairs = zip(NUMBER.findall(ours), NUMBER.findall(kept), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=2e-3, abs_tol=1e-9) for a, b in pairs)
