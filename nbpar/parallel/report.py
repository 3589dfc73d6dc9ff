"""What a mode tells the person about a cell: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """lines: what must be told, each once. details: figures for whoever asks."""

    lines: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)
