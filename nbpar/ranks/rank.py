"""A rank: `python -m nbpar.ranks.rank`, started by an MPI launcher. Its main thread runs cells, one I/O thread talks to the kernel.

guard (parent)    sees how this process ends, ends it when the kernel is gone
main thread       cells socket: task → values in → the cell in the shell, under its mode → values out → reply
I/O thread        side socket: output out; abort and interrupt in
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nbpar import heap
from nbpar.ranks.guard import fork_guarded
from nbpar.ranks.interrupt import HALF, Interrupt
from nbpar.ranks.prepare import (
    clock_ahead,
    prepare_device,
    rank_from_launcher,
    seed_everything,
    share_cores,
    unlink_memory_of_the_dead,
    unlink_shared_memory,
)

IDLE = 300  # milliseconds without work after which a rank imports what torch imports when it first makes an optimiser (1.5 s)
CALM = 2000  # milliseconds without work after which a rank gives free memory back


class CellFailed(Exception):
    """Ends the mode's context when the shell has already dealt with the cell's exception."""


class Rank:
    """All that one rank holds: its shell, its end of the values, its sockets."""

    def __init__(self, rank: int, shared: mmap.mmap) -> None:
        from nbpar.ranks import channel
        from nbpar.ranks.io import IOThread
        from nbpar.ranks.outlet import Outlet, Stream

        self.rank = rank
        self.cells = channel.connect("main", rank)
        self.outlet = Outlet()
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            self.outlet.capture(descriptor, name)
            setattr(sys, name, Stream(self.outlet, name, descriptor))
            setattr(sys, f"__{name}__", getattr(sys, name))
        self.interrupt = Interrupt(shared)
        self.io = IOThread(rank, self.outlet, self.interrupt)
        self.io.start()

    def prepare(self) -> dict[str, Any]:
        """Imports all that is heavy, joins the other ranks, and returns what the kernel wants to know."""
        threads = share_cores()
        heap.keep()
        import torch
        from mpi4py import MPI

        import nbpar
        from nbpar import comm, parallel
        from nbpar.comm import patient
        from nbpar.ranks import channel, machine
        from nbpar.ranks.progress import Progress
        from nbpar.ranks.shell import make_shell
        from nbpar.ranks.steps import Steps
        from nbpar.values import RankEnd
        from nbpar.values.random_state import RandomStates

        world = MPI.COMM_WORLD
        torch.set_num_threads(threads)
        warnings.filterwarnings("ignore", "isinstance.treespec, LeafSpec", FutureWarning)  # torch's, where ranks tell structures
        device = prepare_device()
        if world.size == int(os.environ["NBPAR_SIZE"]):
            comm.join(world, os.environ["NBPAR_BACKEND"], channel.own_address(), channel.folder())
            patient.install()
            unlink_shared_memory(world)
        self.hosts = world.allgather(os.uname().nodename)
        self.ahead = clock_ahead(world) if len(set(self.hosts)) > 1 else 0.0
        self.comm, self.patient, self.parallel = comm, patient, parallel
        self.shell = make_shell(self.outlet, self.rank)
        self.spread = os.environ["NBPAR_SPREAD"] != "0"  # over several hosts
        self.values = RankEnd(self.shell.user_ns, self.rank, world.size, shared=not self.spread)
        self.random = RandomStates()
        self.io.steps = self.steps = Steps()
        self.io.progress = self.progress = Progress(comm.trace)
        self.shell.ast_transformers.append(self.progress.loops)
        seed = int(os.environ["NBPAR_SEED"])
        seed_everything(seed)
        self.common = self.random.capture()  # for streams that the notebook has not begun: alike on all ranks
        seed_everything(seed + 1 + self.rank)
        library = " ".join(MPI.Get_library_version().splitlines()[0].strip("\x00").split())
        return {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "size": world.size,
            "mpi": library,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "nbpar": nbpar.__version__,
            "threads": threads,
            "cores": machine.cores(),
            "device": device,
        }

    def serve(self) -> None:
        from nbpar.ranks import channel

        if not self.cells.poll(IDLE):
            for name in ("stack_data", HALF):  # what IPython imports at its first traceback, and torch at its first step
                import_module(name)
        while True:
            if not self.cells.poll(CALM):
                heap.give_back()
            message = channel.receive(self.cells)
            if message.kind == "exit":
                return
            if message.kind == "renew":
                self.comm.renew()
                self.patient.renew(self.comm.world())
            elif message.kind == "ask":
                self._answer(message.header)
            elif message.kind == "task":
                self.io.begin(message.header.number)
                reply, frames = self.run(message.header, message.frames)
                self.io.end()
                self._send("reply", reply, frames)

    def _send(self, kind: str, header: Any, frames: Any = ()) -> None:
        from nbpar.ranks import channel

        channel.send(self.cells, channel.Message(kind, header, frames))

    def _answer(self, question: bytes) -> None:
        """What the kernel asks of the cell's values. What they raise meanwhile is an answer too."""
        try:
            failure, frames = None, self.values.answer(question)
        except BaseException as error:
            failure, frames = self.shell.failed(error, traceback.format_exc().splitlines()), []
        self._send("answer", failure, frames)

    def run(self, task: Any, frames: Any) -> tuple[Any, list[Any]]:
        """One cell. An error of nbpar's own is an answer too: the rank lives on."""
        from nbpar.errors import Told
        from nbpar.ranks.task import Reply

        try:
            return self._run(task, frames)
        except BaseException as error:
            self.progress.end()
            stb = None if isinstance(error, Told) else traceback.format_exc().splitlines()
            failure = self._caused(self.shell.failed(error, stb))
            return Reply(0.0, self.outlet.produced, failure), []

    def _run(self, task: Any, frames: Any) -> tuple[Any, list[Any]]:
        from nbpar.ranks.task import Reply
        from nbpar.values import settings

        if task.changes:
            task.changes.apply()
        self.shell.remember(task.sources)
        if task.relayed:
            way = self.comm.way(self.rank, task.ranks, self.hosts)
            here = task.shared if way.parent is None else 0
            frames = [*self.comm.relay(frames[:here], task.relayed, way), *frames[here:]]
        settings.restore(task.settings)  # first: values may need a module's folder to be rebuilt
        self.values.load(frames[: task.shared], frames[task.shared :])
        set_before = settings.capture()
        own = self.random.capture() if task.lockstep else {}
        if task.lockstep:
            self.random.restore({**self.common, **task.states})
            given = self.random.capture()
        self.comm.trace.start(self.shell.is_cell)
        self.progress.begin(task.number, task.watched)
        begin = time.perf_counter()
        with self.progress.phases.watching() if task.watched else nullcontext():
            failure, report = self._in_mode(task)
        seconds = time.perf_counter() - begin
        phases, pulse = self.progress.phases.columns(), self.progress.end()
        traffic = None if self.comm.trace.empty else self.comm.trace.columns()
        if self.ahead:
            phases, traffic, pulse = on_first_clock(self.ahead, phases, traffic, pulse)
        states = {}
        if task.lockstep:
            now = self.common = self.random.capture()
            states = {name: state for name, state in now.items() if given.get(name) != state} if self.rank == 0 else {}
            self.random.restore(own)
        shown = None if failure else self.shell.shown
        whole = report.details.get("whole", True)  # else the namespace holds what is nobody else's business
        values = self._values(task, report, result=shown is not None) if whole else []
        self.outlet.drain()
        reply = Reply(
            seconds, self.outlet.produced, failure, shown, report.lines, report.details, traffic, phases, pulse, states,
            settings.changes(set_before),
        )  # fmt: skip
        return reply, values

    def _values(self, task: Any, report: Any, *, result: bool) -> list[Any]:
        apart = report.details.get("kept")
        keep = self._keep(task, apart)
        mode = "model" if apart else "data" if task.mode == "hybrid" else task.mode  # in which the notebook can ask of it
        return self.values.reply(task.number, out=task.out, keep=keep, result=result, mode=mode)

    def _keep(self, task: Any, kept: Any) -> Any:
        """The variables that stay on the ranks. kept: those of which the mode says so, None if it says nothing."""
        if kept is not None or not task.keep:
            return kept or {}
        from nbpar.parallel.model.keep import together
        from nbpar.values.staying import Stay

        return together(self.shell.user_ns, dict.fromkeys(sorted(task.keep), Stay.reason))

    def snapshot(self, task: Any, report: Any, step: int) -> None:
        """What the cell would leave if it ended now. All ranks take part, for a value may be spread over them. Rank 0 sends it; of
        what stays on the ranks each writes its part, or sends it to the kernel's host; a rank that cannot says that there is none.
        """
        from nbpar.ranks.channel import Message

        facts = {"step": step, "states": self.random.capture()}
        values, part = [], None
        with report.at_end() as left:
            if left is not None:
                stays = {**self._keep(task, left.kept), **self.values.stayed()}
                part = self._part(task, stays, left, facts) if stays else []
                if part is not None and self.rank == 0:
                    values = self.values.snapshot(task.number, left.others, out=task.out, keep=stays)
        self.io.messages.append(Message("snapshot", None if part is None else facts, [*values, *(part or ())]))
        self.outlet.nudge()

    def _part(self, task: Any, stays: Any, left: Any, facts: dict[str, Any]) -> list[bytes] | None:
        """Writes this rank's part of what stays on the ranks; its files' contents if the kernel cannot see them. None if that
        failed: the cell goes on without."""
        from torch.distributed.checkpoint.api import CheckpointException

        from nbpar.parallel.model import store

        values = {name: self.shell.user_ns[name] for name in sorted(stays)}
        place = f"{task.snapshots}/{task.count}-{task.number}-{facts['step']}"
        facts.update(place=place, names=list(values), mode="model" if left.kept else "data")
        try:
            if not self.spread:
                os.makedirs(task.snapshots, mode=0o700, exist_ok=True)
                store.write_part(values, place, left.others, self.rank, self.values.size)
                return []
            with TemporaryDirectory(prefix="nbpar-part-") as folder:
                store.write_part(values, folder, left.others, self.rank, self.values.size)
                files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        except (Exception, CheckpointException):
            return None
        facts["files"] = list(files)
        return list(files.values())

    def _in_mode(self, task: Any) -> tuple[Any, Any]:
        from nbpar.errors import PeerFailed, Unsupported

        failure = None
        options = task.options
        if task.mode in self.parallel.KEEP:
            options = {**options, "keep": tuple(sorted(task.keep)), "out": tuple(task.out or ())}
        if self.values.port.staying and (why := self._refusal(task)):
            return self.shell.failed(Unsupported(why)), self.parallel.Report()
        check = self._check(task) if task.check else None
        self.comm.watch(task.lockstep)
        try:
            with self.parallel.mode(task.mode, options, self.shell.user_ns) as report:
                with (
                    self.steps.counted(task.number, task.lockstep, partial(self.snapshot, task, report)),
                    self.interrupt(task.number),
                    check.watching() if check else nullcontext() as witness,
                ):
                    failure = self._caused(self.shell.run(task.code, task.count))
                    if witness and not failure:
                        witness.finish()
                if failure:
                    self.comm.watch(False)
                    self._send("failing", failure)  # a mode may end in a meeting of all ranks
                    raise self._as_the_mode_sees_it(failure)
            failure = self._meet(task)
        except (CellFailed, PeerFailed, KeyboardInterrupt):
            if failure is None:
                raise
        finally:
            self.comm.watch(False)
        if check and not failure and (verdict := check.verdict()):
            report.details.update(check=verdict, closing=[*report.details.get("closing", []), str(verdict)])
        return failure, report

    def _caused(self, failure: Any) -> Any:
        """The same; told as PeerFailed where torch's own backend failed because the kernel has ended its waiting."""
        from nbpar.errors import PeerFailed

        if not failure or not failure.wait or failure.follows or (reason := self.comm.foreign.why_cut()) is None:
            return failure
        caused = self.shell.failed(PeerFailed(reason, failure.wait), failure.traceback)
        return replace(caused, line=failure.line)

    def _check(self, task: Any) -> Any:
        """Before the cell, rank 0 has one process replay it."""
        from nbpar.check.check import Check

        check = Check(task, self.shell, self.outlet)
        if self.rank == 0:
            with self.interrupt(task.number):
                check.replay()
        return check

    def _refusal(self, task: Any) -> str:
        """Why the cell cannot have what stayed on the ranks."""
        from nbpar.parallel.model.keep import refusal

        if task.mode == "bare":
            return ""
        if task.mode not in self.parallel.KEEP:
            return refusal(f"%%parallel {task.mode}", self.shell.user_ns)
        return refusal("--check", self.shell.user_ns) if task.check else ""

    def _as_the_mode_sees_it(self, failure: Any) -> BaseException:
        """A mode may bring together what a cell did before it failed, if the ranks failed alike: not where one stopped anywhere."""
        from nbpar.errors import PeerFailed

        if failure.follows:
            return PeerFailed(failure.text)
        if failure.interrupted and not self.steps.stopped:
            return KeyboardInterrupt()
        return CellFailed(f"{failure.kind}: {failure.text}")

    def _meet(self, task: Any) -> Any:
        """In lockstep no rank leaves a cell before all are at its end; how this failed, if it did."""
        from nbpar.errors import CollectiveMismatch, PeerFailed

        try:
            with self.interrupt(task.number):
                self.comm.meet_at_end(self.steps.count)
        except (CollectiveMismatch, PeerFailed, KeyboardInterrupt) as error:
            return self.shell.failed(error)
        return None


def on_first_clock(ahead: float, phases: Any, traffic: Any, pulse: Any) -> tuple[Any, Any, Any]:
    """What happened when, by the clock of rank 0's host."""
    for columns in filter(None, (phases, traffic)):
        columns.update(start=columns["start"] - ahead, end=columns["end"] - ahead)
    return phases, traffic, pulse and pulse._replace(started=pulse.started - ahead)


def finish(rank: Rank) -> None:
    """Leaves MPI in an orderly way if nothing was abandoned; in any case the process ends here."""
    try:
        rank.comm.leave()
    finally:
        os._exit(0)


def main() -> None:
    number = rank_from_launcher()
    unlink_memory_of_the_dead(number)
    rank = Rank(number, fork_guarded(number))
    try:
        facts = rank.prepare()
    except BaseException as error:
        rank._send("failed", {"text": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        rank.cells.close(2000)
        time.sleep(1)
        os._exit(1)
    rank._send("ready", facts)
    rank.serve()
    finish(rank)


if __name__ == "__main__":
    main()
