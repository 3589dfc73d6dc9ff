r"""Many ranks' output as one stream: what all ranks print appears once, what differs is marked with its ranks.

    rank 0   epoch 1\n  loss 0.31\n  shard 0\n          epoch 1
    rank 1   epoch 1\n  loss 0.31\n  shard 1\n    →     loss 0.31
                                                        [0] shard 0
                                                        [1] shard 1

A piece is a line of text (ended by `\n`, or by `\r` in progress bars) or one rich display. Ranks' next pieces are compared. A
rank that is ahead waits for the others for a moment (HOLD), so that equal lines meet; then

    in lockstep   its piece is shown at once, unmarked, and the others' equal pieces are dropped when they come;
    otherwise     its piece is shown marked with its rank.

Text that nobody has had to look into stays in one piece of many lines: where all ranks print the same, one comparison serves for
all of them. The work is linear in the bytes printed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

HOLD = 0.1  # seconds
HOLD_AT_FIRST = 1.0  # once, in a world's first cell: ranks may still be importing when it comes
HOLD_RICH = 1.0  # a figure takes ranks longer than a line, and twice the same one is worse than a late one
UNFINISHED = 0.3  # seconds until a line without an end is shown as it is
AHEAD = 16  # pieces looked at to find where ranks meet again
LINE = re.compile(r"[^\n\r]*(?:\r\n|\n|\r)|[^\n\r]+")


@dataclass(slots=True, eq=False)
class Piece:
    """name: stdout, stderr, display or clear; bar: whether it overwrites what was before; at: when it came, in seconds.

    lines: whether it is whole lines, not yet cut.
    """

    name: str
    value: Any
    bar: bool = False
    at: float = 0.0
    lines: bool = False

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # many thousand times a second
        return isinstance(other, Piece) and self.value == other.value and self.name == other.name and self.bar == other.bar

    @property
    def text(self) -> bool:
        return isinstance(self.value, str)

    @property
    def look(self) -> str:
        """Equal for pieces that look equal."""
        return self.value if isinstance(self.value, str) else repr(self.value)

    @property
    def ended(self) -> bool:
        """Whether nothing can be added to it."""
        return not self.text or self.value.endswith(("\n", "\r"))

    def cut(self, start: int) -> Piece:
        return replace(self, value=self.value[start:])


def name_ranks(ranks: Iterable[int]) -> str:
    """'0', '0,2', '0-3,7': ranks in few characters."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" if b > a + 1 else f"{a},{b}" for a, b in runs)


class Fold:
    """`feed` what ranks print, `flush` now and then, `close` at the end. `emit(name, value)` shows a piece."""

    def __init__(self, ranks: Iterable[int], emit: Callable[[str, Any], None], *, lockstep: bool, hold: float = HOLD) -> None:
        """hold: seconds that the first piece waits for the ranks that have printed nothing yet; HOLD from then on."""
        self._hold = max(hold, HOLD)
        self._queues: dict[int, deque[Piece]] = {rank: deque() for rank in ranks}
        self._shown: dict[int, deque[Piece]] = {rank: deque() for rank in self._queues}  # unmarked, still to come from this rank
        self._returned: dict[int, set[str]] = {rank: set() for rank in self._queues}  # streams whose cursor is at a line's start
        self._uncut: set[int] = set()  # ranks with pieces of many lines
        self._emit, self._lockstep = emit, lockstep and len(self._queues) > 1
        self._fresh = False
        self._stream, self._texts = "stdout", list[str]()  # said, but not yet emitted
        self._open: tuple[int, ...] = ()  # whose unfinished line the cursor is on

    def feed(self, rank: int, items: Iterable[tuple[str, Any]], now: float) -> None:
        """What a rank printed: (name, text or header) in order. now: seconds."""
        for name, value in items:
            if isinstance(value, str):
                self._feed_text(rank, name, value, now)
            else:
                self._queues[rank].append(Piece(name, value, at=now))
        self._drop_shown(rank)

    def _feed_text(self, rank: int, name: str, text: str, now: float) -> None:
        queue = self._queues[rank]
        if queue and not queue[-1].ended:  # its line goes on
            line, end, text = text.partition("\n")
            self._feed_lines(rank, name, line + end, now)
        if "\r" in text or self._returned[rank] or self._shown[rank]:
            self._feed_lines(rank, name, text, now)
            return
        lines, end, rest = text.rpartition("\n")
        if end:
            queue.append(Piece(name, lines + end, at=now, lines=True))
            self._uncut.add(rank)
        self._feed_lines(rank, name, rest, now)

    def _feed_lines(self, rank: int, name: str, text: str, now: float) -> None:
        for line in LINE.findall(text):
            self._feed_line(rank, name, line, now)

    def _feed_line(self, rank: int, name: str, text: str, now: float) -> None:
        queue, returned = self._queues[rank], self._returned[rank]
        last = queue[-1] if queue else None
        if last and last.name == name and (not last.ended or (text == "\n" and last.value.endswith("\r"))):
            queue[-1] = Piece(name, last.value + text, last.bar, last.at)
        else:
            queue.append(Piece(name, text, text.endswith("\r") or name in returned, now))
        if text.endswith("\r"):
            returned.add(name)
        elif text.endswith("\n"):
            returned.discard(name)

    @property
    def waiting(self) -> bool:
        """Whether there is something that `flush` will show in a moment, though nothing is fed."""
        return any(self._queues.values())

    def flush(self, now: float) -> bool:
        """Shows all that can be shown by now; whether there was anything since the last time."""
        self._meet()
        while late := [rank for rank, queue in self._queues.items() if queue and self._late(queue[0], now)]:
            self._hold = HOLD
            self._advance(late)
            self._meet()
        self._pour()
        fresh, self._fresh = self._fresh, False
        return fresh

    def _late(self, piece: Piece, now: float) -> bool:
        patience = HOLD_RICH if not piece.text else HOLD if piece.ended else UNFINISHED
        return now - piece.at >= max(self._hold, patience)

    def close(self) -> bool:
        """Shows the rest: nothing more will come. Whether the last line has no end."""
        self._meet()
        while waiting := [rank for rank, queue in self._queues.items() if queue]:
            self._advance(waiting)
            self._meet()
        self._pour()
        return bool(self._open)

    def _meet(self) -> None:
        """Takes pieces while every rank has a whole one."""
        queues = self._queues
        if all(queues.values()):
            self._hold = HOLD
        while all(queue and queue[0].ended for queue in queues.values()):
            first, *others = [queue[0] for queue in queues.values()]
            if all(piece == first for piece in others):
                self._show(first, tuple(queues))
                for rank in queues:
                    self._take(rank)
            elif not self._meet_in_lines():
                self._show_groups(self._strangers())

    def _meet_in_lines(self) -> bool:
        """Takes the lines that all ranks' next pieces begin with, if these are all that one of them has; else cuts the pieces.

        False if all pieces are single lines.
        """
        if not self._uncut:
            return False
        pieces = [queue[0] for queue in self._queues.values()]
        alike = all(piece.text and not piece.bar and piece.name == pieces[0].name for piece in pieces)
        shortest = min(pieces, key=lambda piece: len(piece.value))
        if not alike or not all(piece.value.startswith(shortest.value) for piece in pieces):
            self._cut()
            return True
        self._show(shortest, tuple(self._queues))
        for queue in self._queues.values():
            piece = queue.popleft()
            if len(piece.value) > len(shortest.value):
                queue.appendleft(piece.cut(len(shortest.value)))
        return True

    def _cut(self) -> None:
        """From here on, each line is a piece."""
        for rank in self._uncut:
            pieces = list(self._queues[rank])
            self._queues[rank].clear()
            for piece in pieces:
                if piece.lines:
                    self._queues[rank].extend(replace(piece, value=line, lines=False) for line in LINE.findall(piece.value))
                else:
                    self._queues[rank].append(piece)
        self._uncut.clear()

    def _groups(self, ranks: Iterable[int]) -> list[list[int]]:
        """Ranks by their next piece."""
        groups: dict[tuple[str, bool, str], list[int]] = {}
        for rank in ranks:
            piece = self._queues[rank][0]
            groups.setdefault((piece.name, piece.bar, piece.look), []).append(rank)
        return list(groups.values())

    def _strangers(self) -> list[list[int]]:
        """Groups whose next piece no rank outside of them is about to print; all groups, if there is no such one."""
        groups = self._groups(self._queues)
        whose: dict[str, set[int]] = {}
        for group in groups:
            whose.setdefault(self._queues[group[0]][0].look, set()).update(group)
        expected = set()
        for rank, queue in self._queues.items():
            for piece in islice(queue, 1, AHEAD):
                look = piece.value if piece.value.__class__ is str else piece.look  # many thousand times a second
                if look in whose and rank not in whose[look]:
                    expected.add(look)
        return [group for group in groups if self._queues[group[0]][0].look not in expected] or groups

    def _advance(self, ranks: list[int]) -> None:
        """The next piece of ranks that have waited long enough."""
        self._cut()
        if not self._lockstep:
            self._show_groups(self._groups(ranks))
            return
        leader = ranks[0]
        piece = self._take(leader)
        self._show(piece, tuple(self._queues))
        for rank in self._queues:
            if rank != leader:
                self._shown[rank].append(piece)
                self._drop_shown(rank)

    def _show_groups(self, groups: list[list[int]]) -> None:
        for group in groups:
            piece = self._queues[group[0]][0]
            if not (piece.bar and self._lockstep):
                self._show(piece, tuple(group))
            elif 0 in group:  # ranks' bars differ in their timing only: one is enough
                self._show(piece, tuple(self._queues))
            for rank in group:
                self._take(rank)

    def _take(self, rank: int) -> Piece:
        return self._queues[rank].popleft()

    def _drop_shown(self, rank: int) -> None:
        """Drops the rank's pieces that were shown already when another rank printed them."""
        queue, shown = self._queues[rank], self._shown[rank]
        while queue and shown:
            mine, theirs = queue[0], shown[0]
            both = mine.text and theirs.text and mine.name == theirs.name
            if mine in islice(shown, AHEAD):  # what they printed before it, this rank did not
                while shown.popleft() != mine:
                    pass
                queue.popleft()
            elif both and mine.value.startswith(theirs.value):  # they had shown the line's beginning
                queue[0] = mine.cut(len(theirs.value))
                shown.popleft()
            elif not mine.ended:
                return
            elif both and theirs.value.startswith(mine.value):
                shown[0] = theirs.cut(len(mine.value))
                queue.popleft()
            else:
                if not mine.bar:
                    self._show(mine, (rank,))
                queue.popleft()
                shown.popleft()

    def _show(self, piece: Piece, ranks: tuple[int, ...]) -> None:
        self._fresh = True
        name, value = piece.name, piece.value
        everybody = len(ranks) == len(self._queues)
        if piece.text:
            if self._open and self._open != ranks:
                self._say(name, "\n")
                self._open = ()
            if not self._open and not everybody:
                self._say(name, f"[{name_ranks(ranks)}] ")
            self._say(name, value)
            self._open = () if piece.ended else ranks
            return
        if not everybody and name == "display" and not value.get("update"):
            self._say("stdout", f"[{name_ranks(ranks)}]\n")
        self._pour()
        self._emit(name, value)

    def _say(self, name: str, text: str) -> None:
        """Text goes out in few large pieces."""
        if name != self._stream:
            self._pour()
            self._stream = name
        self._texts.append(text)

    def _pour(self) -> None:
        if self._texts:
            self._emit(self._stream, "".join(self._texts))
            self._texts.clear()
