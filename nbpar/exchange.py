"""While a cell runs: output and replies come in, one rank's failure ends the waiting of the others, interrupts go out."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbpar.display import show
from nbpar.display.stream import HOLD, HOLD_AT_FIRST, Fold, name_ranks
from nbpar.hang import Wait, explain
from nbpar.pause import Pause
from nbpar.ranks.channel import Message
from nbpar.ranks.task import Failure, Reply

if TYPE_CHECKING:
    from nbpar.display.watch import Watch
    from nbpar.ranks.world import World
    from nbpar.run import Cell

TICK = 0.05  # seconds between two looks at output that waits
IDLE = 0.5  # seconds after which the ranks' host and launcher are looked at, however quiet it is
PATIENCE = 5.0  # seconds after an interrupt until the person is told of ranks that do not answer
LOOK = 1.0  # seconds between two looks at where the ranks are
STEP = 2.0  # seconds after an interrupt in which a lockstep cell may come to its next optimiser step
ALIKE = 0.2  # seconds after a failure in which the other ranks of a lockstep cell may fail alike
ALIKE_AT_FIRST = 3.0  # the same in a world's first cell: ranks may still be importing when it comes
USELESS = 0.5  # seconds that they may go on after that


class Interrupts:
    """Counts SIGINTs instead of raising, so that no step of a cell is left half done. Only the main thread gets any.

    heard: called at each, to end a waiting.
    """

    count = 0

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard

    def __enter__(self) -> Interrupts:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._old = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, _number: int, _frame: Any) -> None:
        self.count += 1
        self._heard()

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._old)


def show_late(world: World) -> None:
    """What threads of former cells have printed since, and values while they were brought home."""
    if not world.unshown:
        return
    fold = Fold(range(world.size), show.emit, lockstep=False)
    for message in world.unshown:
        fold.feed(message.rank, message.header, 0.0)
    world.unshown = []
    if fold.close():
        show.emit("stdout", "\n")
    show.flush()


class Exchange:
    """From the tasks' sending to the last reply. replies, frames: what each rank answered, by rank."""

    def __init__(self, world: World, cell: Cell, interrupts: Interrupts, watch: Watch | None = None) -> None:
        self.replies: dict[int, Reply] = {}
        self.frames: dict[int, Any] = {}
        self._world, self._cell, self._interrupts, self._watch = world, cell, interrupts, watch
        self._heard = 0
        self._printed = False
        self._waits: dict[int, Wait | None] = {}
        self._waited: dict[int, Wait | None] = {}  # at the look before
        self._asked_at = time.monotonic() + LOOK
        self.midline = False  # whether the output's last line has no end
        self.stuck: str | None = None  # why the cell was ended, if its ranks waited in vain
        self._pause = Pause(world, cell.ranks)
        self._snapshot_at = time.monotonic() + cell.snapshot if cell.lockstep and cell.snapshot else float("inf")
        self.snapshot: Message | None = None  # the last one: header and values of rank 0
        self._parts: dict[int, Message] = {}  # of the next one, by rank
        self._failed: dict[int, Failure] = {}
        self._end_waiting_at = self._useless_at = self._stop_now_at = self._tell_at = float("inf")
        self._give_up_at = 3  # interrupts

    @property
    def interrupted(self) -> bool:
        return self._interrupts.count > 0

    def run(self) -> None:
        """Until every rank has replied. Raises RankDied, and KeyboardInterrupt if ranks had to be given up."""
        show_late(self._world)
        with self._output() as fold:
            while self._unfinished():
                for message in self._world.events(self._patience(fold)):
                    self._take(message, fold)
                if self._printed and fold.flush(time.monotonic()):
                    show.flush()
                self._draw()
                self._pass_interrupts_on()
                self._end_waiting()
                self._end_useless_work()
                self._look_for_hangs()
                self._ask_for_snapshots()
        self._world.fresh = False
        self.replies = {rank: self.replies[rank] for rank in self._cell.ranks}

    def _patience(self, fold: Fold) -> float:
        """Seconds until there may be something to do though nobody says anything."""
        if fold.waiting:
            return TICK
        due = min(self._asked_at, self._snapshot_at, self._end_waiting_at, self._useless_at, self._stop_now_at, self._tell_at)
        if self._watch is not None:
            due = min(due, self._watch.due)
        return max(TICK, min(due - time.monotonic(), IDLE))

    def _draw(self) -> None:
        """The panels. A picture that fails is no failure of the cell."""
        if self._watch is None:
            return
        try:
            self._watch.tick(time.monotonic())
        except Exception as error:
            self._watch = None
            show.note(f"the panels could not be drawn ({type(error).__name__}: {error}); the cell goes on.")

    @contextmanager
    def _output(self) -> Iterator[Fold]:
        """The ranks' output as one stream; what is left of it is shown however the cell ends."""
        hold = HOLD_AT_FIRST if self._world.fresh else HOLD
        fold = Fold(self._cell.ranks, show.emit, lockstep=self._cell.lockstep, hold=hold)
        try:
            yield fold
        finally:
            self.midline = fold.close()
            if fold.flush(0):
                show.flush()

    def _unfinished(self) -> bool:
        """Whether a reply is missing, or output that was written before it."""
        produced, replies = self._world.produced, self.replies
        return len(replies) < len(self._cell.ranks) or any(
            rank not in replies or produced[rank] < replies[rank].produced for rank in self._cell.ranks
        )

    def _missing(self) -> list[int]:
        return [rank for rank in self._cell.ranks if rank not in self.replies]

    def _take(self, message: Message, fold: Fold) -> None:
        if message.kind == "output":
            self._world.note_output(message)
            if message.rank not in self._cell.ranks:
                self._world.unshown.append(message)
                return
            self._printed = True
            fold.feed(message.rank, message.header, time.monotonic())
            if self._watch is not None:
                self._watch.feed(message)
        elif message.kind == "progress":
            self._world.memory[message.rank] = message.header[-1].memory
            if self._watch is not None:
                self._watch.feed(message)
        elif message.kind == "reply":
            self.replies[message.rank], self.frames[message.rank] = message.header, message.frames
            if message.header.failure:
                self._note_failure(message.rank, message.header.failure)
        elif message.kind == "failing":
            self._note_failure(message.rank, message.header)
        elif message.kind == "where":
            self._waits[message.rank] = message.header
        elif message.kind == "held":
            self._pause.held(message.rank, message.header)
        elif message.kind == "snapshot":
            self._parts[message.rank] = message
            if len(self._parts) == len(self._cell.ranks):
                self._take_snapshot()

    def _take_snapshot(self) -> None:
        """All ranks have done their part of it. It counts if all of them could."""
        parts, self._parts = self._parts, {}
        if all(part.header for part in parts.values()):
            parts = {rank: self._world.snapshots.write(part) for rank, part in parts.items()}
            self.snapshot = parts[self._cell.ranks[0]]
            if "place" in self.snapshot.header:
                self._world.snapshots.take(self.snapshot.header, self._world.namespace)
        self._snapshot_at = time.monotonic() + self._cell.snapshot
        self._pause.end()
        if self.interrupted:
            self._pause.ask("stop")

    def _note_failure(self, rank: int, failure: Failure) -> None:
        """A rank fails: the others must not wait for it."""
        if not self._failed:
            alike = ALIKE_AT_FIRST if self._world.fresh else ALIKE
            self._end_waiting_at = time.monotonic() + (alike if self._cell.lockstep else 0)
        self._failed.setdefault(rank, failure)
        self._world.hurt |= failure.mismatch

    def _end_waiting(self) -> None:
        """Ends the other ranks' waiting for those that failed, unless all fail: they may meet to put their values together."""
        if time.monotonic() < self._end_waiting_at or self._stop_now_at < float("inf"):
            return
        self._end_waiting_at, self._useless_at = float("inf"), time.monotonic() + USELESS
        if self._failed.keys() >= set(self._cell.ranks):
            return
        failed, failure = next(iter(self._failed.items()))
        where = f", line {failure.line}" if failure.line else ""
        for rank in self._missing():
            self._world.abort(rank, f"rank {failed} ended in {failure.kind}{where}")

    def _pass_interrupts_on(self) -> None:
        """The first interrupt of a lockstep cell stops it at one optimiser step on all ranks; any other stops it now."""
        now = time.monotonic()
        if self._interrupts.count > self._heard:
            self._heard = self._interrupts.count
            if self._heard == 1:
                self._tell_at = now + PATIENCE
                if self._cell.lockstep and not self.replies:
                    self._stop_now_at = now + STEP
                    self._stop_at_a_step()
                    return
            self._stop_now_at = now
        if now >= self._stop_now_at:
            self._stop_now_at = float("inf")
            for rank in self._missing():
                self._world.interrupt(rank)
        if now >= self._tell_at and self._missing():
            self._tell_at = float("inf")
            self._offer_a_restart()
        if self._heard >= self._give_up_at:
            self._give_up()

    def _offer_a_restart(self) -> None:
        """Ranks that do not answer sit in a C call that does not look up."""
        self._give_up_at = self._heard + 1
        silent = name_ranks(self._missing())
        show.emit(
            "stdout",
            f"rank {silent}: in a C call that cannot be stopped; the cell ends when it returns. Interrupt once more for a "
            "%parallel restart at once: the variables are then as the notebook has them.\n",
        )
        show.flush()

    def _stop_at_a_step(self) -> None:
        if not self._pause.purpose:
            self._pause.ask("stop")
        elif not self._pause.agreed:
            self._pause.purpose = "stop"  # a snapshot that nobody has heard of yet; one that is agreed on is waited for

    def _ask_for_snapshots(self) -> None:
        if time.monotonic() >= self._snapshot_at and not self.replies and not self.interrupted:
            self._snapshot_at = float("inf")
            self._pause.ask("snapshot")

    def _end_useless_work(self) -> None:
        """In lockstep nobody will use what the others compute after one has failed."""
        if self._cell.lockstep and time.monotonic() > self._useless_at:
            self._useless_at = float("inf")
            for rank in self._missing():
                self._world.interrupt(rank)

    def _look_for_hangs(self) -> None:
        """Asks now and then where the ranks are; ends the cell when all of them wait in vain."""
        if self.stuck or time.monotonic() < self._asked_at:
            return
        missing = self._missing()
        if all(rank in self._waits for rank in missing):
            self.stuck = explain({rank: self._waits[rank] for rank in missing}, set(self.replies), self._waited)
        self._waited, self._waits = self._waits, {}
        self._asked_at = time.monotonic() + LOOK
        for rank in missing:
            if self.stuck:
                self._world.abort(rank, "its calls do not match those of the other ranks")
            else:
                self._world.tell(rank, "where")

    def _give_up(self) -> None:
        """Fresh ranks are at hand."""
        silent = name_ranks(self._missing())
        self._world.stop()
        text = f"The processes of rank {silent} did not stop and were ended. All variables are in the notebook. {self._world.again}"
        error = KeyboardInterrupt(text)
        error._render_traceback_ = lambda: [f"KeyboardInterrupt: {text}"]  # type: ignore[attr-defined]
        raise error
