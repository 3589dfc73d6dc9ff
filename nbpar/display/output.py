"""Each rank's lines of output, equal ones folded, to be searched. The plain stream of the notebook stays as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from nbpar.display.stream import Fold, Piece, name_ranks

MOST = 2000  # lines kept of each rank, the newest
LONGEST = 400  # characters kept of a line
SENT = 60_000  # characters that a page is sent


class Lines:
    """What ranks print in a cell, line by line."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self.by_rank: dict[int, deque[str]] = {rank: deque(maxlen=MOST) for rank in ranks}
        self._open = dict.fromkeys(self.by_rank, "")

    def feed(self, rank: int, items: Iterable[tuple[str, Any]]) -> None:
        for name, value in items:
            if name not in ("stdout", "stderr"):
                continue
            *whole, self._open[rank] = (self._open[rank] + value).split("\n")
            self.by_rank[rank].extend(line.rpartition("\r")[2][:LONGEST] for line in whole)

    def last(self, rank: int) -> str:
        """The rank's last line that says something."""
        unfinished = self._open[rank].rstrip("\r").rpartition("\r")[2].strip()
        return unfinished or next((line for line in reversed(self.by_rank[rank]) if line.strip()), "")

    def close(self) -> None:
        for rank, rest in self._open.items():
            if rest:
                self.by_rank[rank].append(rest.rstrip("\r").rpartition("\r")[2][:LONGEST])
        self._open = dict.fromkeys(self.by_rank, "")


class _Collect(Fold):
    """A fold that keeps which ranks printed a line instead of showing it."""

    def __init__(self, ranks: Iterable[int]) -> None:
        super().__init__(ranks, lambda *_: None, lockstep=False)
        self.lines: list[tuple[tuple[int, ...], str]] = []

    def _show(self, piece: Piece, ranks: tuple[int, ...]) -> None:
        self.lines.append((ranks, piece.value.rstrip("\n")))


def folded(by_rank: Mapping[int, Iterable[str]]) -> list[tuple[tuple[int, ...], str]]:
    """(ranks, line) in order: what several ranks printed in the same place appears once."""
    collect = _Collect(by_rank)
    for rank, lines in by_rank.items():
        collect.feed(rank, [("stdout", "".join(f"{line}\n" for line in lines))], 0.0)
    collect.close()
    return collect.lines


def state(lines: list[tuple[tuple[int, ...], str]]) -> list[list[str]]:
    """For the page: ["0-3", line], the newest that fit."""
    sent: list[list[str]] = []
    room = SENT
    for ranks, line in reversed(lines):
        room -= len(line) + 12
        if room < 0:
            sent.append(["", "… earlier lines are in nbpar.last().output"])
            break
        sent.append([name_ranks(ranks), line])
    return sent[::-1]
