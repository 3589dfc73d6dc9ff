"""What a mode tells about a cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from nbpar.values.staying import Stay


@dataclass(frozen=True)
class Left:
    """What a cell would leave if it ended now. others: what tensors would be, by their ids, those that are not so already.

    kept: the variables that would stay on the ranks; None where the mode leaves that to --keep.
    """

    others: Mapping[int, Any] = field(default_factory=dict)
    kept: Mapping[str, Stay] | None = None


@dataclass
class Report:
    """lines: what must be told, each once. details: figures for whoever asks.

    at_end: at an optimiser step, entered by all ranks, it gives what the cell would leave if it ended there; or None where that
    cannot be told. Nothing is changed by it.
    """

    lines: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    at_end: Callable[[], AbstractContextManager[Left | None]] = lambda: nullcontext(Left())

    def say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)
