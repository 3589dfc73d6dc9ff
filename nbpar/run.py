"""One cell, from the magic to the result. Read this first.

names      what the cell reads            cell.py
pack       those values, once for all     values/
exchange   tasks out, output and replies back, interrupts and failures on the way
settle     did it end well, everywhere alike, or on some ranks only?
merge      what the ranks changed, into the notebook
watch      panels of a cell that runs for long   display/watch.py
closing    one line: ranks, time, where it went
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nbpar import cell as cells
from nbpar import checkpoint
from nbpar.display import closing, show
from nbpar.display.watch import Watch
from nbpar.errors import OptionError, RankDied, suggest
from nbpar.exchange import TICK, Exchange, Interrupts, show_late
from nbpar.failure import raise_failure, raise_unanswered, shared_failure
from nbpar.parallel import LOCKSTEP
from nbpar.ranks.channel import Message
from nbpar.ranks.task import Failure, Reply, Task
from nbpar.record import Last, keep
from nbpar.values import RankRef, settings
from nbpar.values.random_state import RandomStates

if TYPE_CHECKING:
    from nbpar.plan.plan import Plan
    from nbpar.ranks.world import World

DEFAULT = ("split", "live")  # panels, of cells that run for two seconds
RELAYED = 1 << 16  # bytes; smaller values go from the kernel to each rank on other hosts
SNAPSHOT = 60.0  # seconds between two snapshots of a lockstep cell, unless it says otherwise


@dataclass(frozen=True)
class Cell:
    """What a person typed: the code, the mode and the options that concern the kernel.

    show: panels; asked: whether for this very cell, however short it is.
    """

    code: str
    mode: str
    ranks: tuple[int, ...]
    out: frozenset[str] | None = None
    keep: frozenset[str] = frozenset()
    quiet: bool = False
    check: int = 0
    snapshot: float = SNAPSHOT
    show: tuple[str, ...] = ()
    asked: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lockstep(self) -> bool:
        return self.mode in LOCKSTEP


@dataclass(frozen=True)
class Record:
    """What is known of a cell afterwards. seconds: wall time in the kernel; bytes_in, bytes_out: values to and from the ranks.
    start: seconds before it until its ranks were there, 0 if they were."""

    cell: Cell
    replies: dict[int, Reply]
    seconds: float
    bytes_in: int
    bytes_out: int
    start: float = 0.0


def run_cell(world: World, code: str, mode: str, options: Mapping[str, Any]) -> Any:
    """Runs a cell on the world's ranks and brings its results home; the value of its last expression, if that shows one.

    Raises what the cell raised if it did so alike on all ranks, CellError if only some failed, RankDied, KeyboardInterrupt.
    """
    cell = make_cell(world, code, mode, options)
    revive(world)
    begin, start = time.perf_counter(), world.told()
    watch = None if cell.quiet else watching(world, cell)
    merged = None
    with Interrupts(world.nudge) as interrupts:
        packed = send_tasks(world, cell)
        exchange = Exchange(world, cell, interrupts, watch)
        try:
            run_to_the_end(world, exchange)
            merged = settle(world, cell, exchange)
        finally:
            record = Record(cell, exchange.replies, time.perf_counter() - begin, packed.bytes, merged.bytes if merged else 0, start)
            remember(world, record, watch)
    replies = exchange.replies
    if exchange.midline and (world.unshown or not cell.quiet):
        show.emit("stdout", "\n")
    show_late(world)
    if not cell.quiet:
        for line in dict.fromkeys([*packed.notes, *merged.notes, *replies[cell.ranks[0]].lines]):
            show.note(line)
        show.closing(closing.line(record))
    return result(merged.result, replies)


def run_to_the_end(world: World, exchange: Exchange) -> None:
    """Until all ranks have replied. If one dies, the notebook gets the last snapshot, if there is one."""
    try:
        exchange.run()
    except RankDied:
        if exchange.snapshot is not None:
            facts, frames = exchange.snapshot.header, [list(exchange.snapshot.frames)]
            world.values.merge(frames, lambda _: [], ranks=[exchange.snapshot.rank])
            RandomStates().restore(facts["states"])
            show.note(f"the notebook's variables are as they were in this cell after optimiser step {facts['step']}.")
            if "place" in facts:
                world.snapshots.name(facts, world.namespace)
                world.snapshots.awaited = facts
                names = ", ".join(facts["names"])
                show.note(f"{names} stayed on the ranks: the next %%parallel cell begins with them as of that step.")
        raise
    finally:
        world.snapshots.saved = frozenset()


def revive(world: World) -> None:
    """Ranks that died since the last cell are replaced: what counts is in the notebook, or in a snapshot."""
    if world.running and (death := world.check()):
        show.note(str(death))
    world.start()
    facts, world.snapshots.awaited = world.snapshots.awaited, None
    if facts and (names := [name for name in facts["names"] if isinstance(world.namespace.get(name), RankRef)]):
        found = checkpoint.gathered(facts["place"]) if world.spread else checkpoint.load(facts["place"])
        world.namespace.update((name, found[name]) for name in names)
        where = "in the notebook" if world.spread else "on the ranks"
        show.note(f"{', '.join(names)}: {where} as of optimiser step {facts['step']} of the cell in which the others ended.")


def result(value: Any, replies: Mapping[int, Reply]) -> Any:
    """The value of the cell's last expression; one that stayed on the ranks is shown here as the ranks would show it."""
    shown = [reply.result for reply in replies.values() if reply.result]
    if not shown or not isinstance(value, RankRef):
        return value if shown else None
    for bundle in shown if any(bundle != shown[0] for bundle in shown) else shown[:1]:
        show.emit("display", bundle)
    return None


def make_cell(world: World, code: str, mode: str, options: Mapping[str, Any]) -> Cell:
    own = dict(options)
    ranks = tuple(own.pop("on", None) or range(world.size))
    out, keep = own.pop("out", None), own.pop("keep", None)
    panels = own.pop("show", None)
    for option, given in (("out", out), ("keep", keep), ("batch", own.get("batch"))):
        look_for(option, given or (), code, world.namespace)
    return Cell(
        code,
        mode,
        ranks,
        out=None if out is None else frozenset(out),
        keep=frozenset(keep or ()),
        quiet=own.pop("quiet", False),
        check=own.pop("check", None) or 0,
        snapshot=own.pop("snapshot", SNAPSHOT),
        show=tuple(DEFAULT if panels is None else panels),
        asked=own.pop("asked", panels is not None),
        options=own,
    )


def look_for(option: str, names: Iterable[str], code: str, namespace: Mapping[str, Any]) -> None:
    """Raises OptionError for a name of which neither the notebook nor the cell's text knows."""
    words = set(re.findall(r"\w+", re.sub("#.*", "", code)))  # the magic itself is there as a comment
    for name in names:
        if name not in words and name not in namespace and not read_names(code).dynamic:
            known = [*words, *namespace]
            raise OptionError(
                f"--{option} {name}: no variable {name!r}, neither in the notebook nor in this cell.{suggest(name, known)}"
            )


# ---- to the ranks ---------------------------------------------------------------------------------------------------------


def send_tasks(world: World, cell: Cell) -> Any:
    """Packs what the cell reads and sends every rank its task."""
    world.cell += 1
    world.renew()
    changes = world.surroundings.take()
    if changes and changes.modules:
        world.values.forget()  # what the ranks have of a reloaded module is of its old code
    names = read_names(cell.code)
    packed = world.values.pack(names.reads, cell=world.cell, everything=bool(names.dynamic), anew=names.anew)
    task = Task(
        number=world.cell,
        code=cell.code,
        mode=cell.mode,
        options=cell.options,
        lockstep=cell.lockstep,
        count=show.execution_count(),
        shared=len(packed.frames),
        relayed=(sizes := relayed(world, cell, packed.frames)),
        ranks=cell.ranks if sizes else (),
        states=RandomStates().capture() if cell.lockstep else {},
        settings=settings.capture(),
        changes=changes,
        sources=show.new_sources(world),
        out=cell.out,
        keep=cell.keep,
        check=cell.check,
        snapshots=world.snapshots.folder,
        watched=not cell.quiet,
    )
    whole = Message("task", task, packed.frames)
    others = Message("task", task) if sizes else whole
    for rank in cell.ranks:
        message = whole if rank == cell.ranks[0] else others
        own = packed.extra.get(rank)
        world.send(rank, replace(message, frames=[*message.frames, *own]) if own else message)
    return packed


def relayed(world: World, cell: Cell, frames: Sequence[Any]) -> tuple[int, ...]:
    """Sizes of the values that ranks on several hosts hand on to each other; none where all get them from here."""
    sizes = tuple(memoryview(frame).nbytes for frame in frames)
    return sizes if world.spread and len(cell.ranks) > 1 and sum(sizes) >= RELAYED else ()


def read_names(code: str) -> cells.Names:
    """What the cell reads. A cell that does not parse reads nothing: the ranks' IPython will say what is wrong with it."""
    try:
        return cells.names(code)
    except SyntaxError:
        return cells.Names(frozenset(), frozenset(), frozenset())


# ---- pictures -------------------------------------------------------------------------------------------------------------


def watching(world: World, cell: Cell) -> Watch:
    """The cell's panels."""
    hosts = world.hosts if world.spread else ()

    def ask() -> None:
        for rank in cell.ranks:
            world.tell(rank, "watch", world.cell)

    return Watch(cell.ranks, cell.show, lambda: plan_of(world, cell, {}), ask, asked=cell.asked, hosts=hosts)


def plan_of(world: World, cell: Cell, replies: Mapping[int, Reply], *, full: bool = False) -> Plan | None:
    """Who holds what, from the models that the cell reads and, once it has ended, from what the ranks say."""
    from nbpar.plan.outline import outline

    names = read_names(cell.code).reads
    values = {name: world.namespace[name] for name in names if name in world.namespace}
    first = replies.get(cell.ranks[0])
    placed, split = (first.details.get("placed"), first.details.get("split")) if first else (None, None)
    rows = first.details.get("rows", 0) if first else 0
    return outline(values, cell.mode, len(cell.ranks), cell.options, placed=placed, split=split, rows=rows, full=full)


def remember(world: World, record: Record, watch: Watch | None) -> None:
    """For `nbpar.last()`; the panels show how the cell ended. A picture that fails is no failure of the cell."""
    cell, replies = record.cell, record.replies
    if watch is not None:
        for rank, reply in replies.items():
            if reply.pulse:
                watch.live.feed(rank, (reply.pulse,))
        watch.live.finish({rank: reply.failure is not None for rank, reply in replies.items()})
    last = keep(Last(record, watch.live if watch else None, lambda full: plan_of(world, cell, replies, full=full)))
    try:
        if watch is not None:
            watch.end(last)
    except Exception as error:
        show.note(f"the panels could not be drawn ({type(error).__name__}: {error}); the cell's results are not affected.")


# ---- afterwards -----------------------------------------------------------------------------------------------------------


def settle(world: World, cell: Cell, exchange: Exchange) -> Any:
    """Merges what the cell did if all ranks ended alike; else leaves the notebook as it was. Raises what is to be raised."""
    values = [list(exchange.frames[rank]) for rank in cell.ranks]
    failures = {rank: reply.failure for rank, reply in exchange.replies.items() if reply.failure}
    ranks = list(cell.ranks)

    def put(question: bytes) -> list[Any]:
        return ask(world, cell.ranks, question)

    alike = not failures or (shared_failure(failures, len(values)) is not None and world.values.alike(values, put, ranks))
    if exchange.stuck or not alike:
        world.values.forget()
        reads = () if cell.quiet else read_names(cell.code).reads
        if stayed := sorted(name for name in reads if isinstance(world.namespace.get(name), RankRef)):
            show.note(f"{', '.join(stayed)} stayed on the ranks and may be changed in part: read a checkpoint before you go on.")
        raise_failure(world, exchange, failures, kept=False)
    merged = world.values.merge(values, put, out=cell.out, keep=cell.keep, ranks=ranks)
    first = exchange.replies[cell.ranks[0]]
    settings.restore(first.settings)
    if cell.lockstep:
        RandomStates().restore(first.states)
    if failures or exchange.interrupted:
        raise_failure(world, exchange, failures, kept=True)
    return merged


def ask(world: World, ranks: tuple[int, ...], request: bytes) -> list[Any]:
    """A question of the values layer to all ranks of the cell. Raises CellError where a value raises when it is looked at."""
    question = Message("ask", request)
    for rank in ranks:
        world.send(rank, question)
    answers: dict[int, list[Any]] = {}
    failures: dict[int, Failure] = {}
    while len(answers) < len(ranks):
        for message in world.answers(TICK):
            if message.kind == "answer":
                answers[message.rank] = list(message.frames)
                if message.header is not None:
                    failures[message.rank] = message.header
    if failures:
        world.values.forget()
        raise_unanswered(world, failures)
    return [answers[rank] for rank in ranks]
