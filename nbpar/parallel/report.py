"""What a mode tells about a cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """lines: what must be told, each once. details: figures for whoever asks.

    at_end: at an optimiser step, entered by all ranks, it gives what tensors would be if the cell ended there, by their ids: those
    that are not so already; or None where that cannot be told. Nothing is changed by it.
    """

    lines: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    at_end: Callable[[], AbstractContextManager[Mapping[int, Any] | None]] = lambda: nullcontext({})

    def say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)
