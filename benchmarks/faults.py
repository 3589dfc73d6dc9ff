"""The same faults under nbpar and its peers: until when the kernel has control, was the cause named, does the next cell work."""

from __future__ import annotations

import os
import queue
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import RANKS, scratch
from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

PATIENCE = 12.0  # seconds after which a cell is given up
PAUSE = 1.0  # seconds before the next cell: ipykernel drops what is sent in the moment of an error
ORPHANS = 5.0  # seconds after the kernel's death
ANSI = re.compile(r"\x1b\[[0-9;]*m")
SETUP = """import os, time
with open(os.path.join({folder!r}, str(rank)), "w") as file: print(os.getpid(), file=file)
"""
SUM = "print(f'sum {total()}')"


class Driven:
    """A notebook whose cells may never end."""

    def __init__(self, notebook: Notebook, folder: Path) -> None:
        self.notebook, self.folder = notebook, folder
        self.text = ""

    @property
    def ranks(self) -> list[int]:
        """The processes that ran the last cell."""
        return [int(path.read_text()) for path in sorted(self.folder.iterdir())]

    def begun(self) -> None:
        """Waits until both ranks run the cell."""
        end = time.monotonic() + PATIENCE
        while len(list(self.folder.iterdir())) < RANKS and time.monotonic() < end:
            time.sleep(0.05)

    def send(self, cell: str) -> str:
        self.text = ""
        for path in self.folder.iterdir():
            path.unlink()
        setup = self.notebook.who + SETUP.format(folder=str(self.folder))
        return self.notebook.client.execute(self.notebook.text(setup + cell))

    def collect(self, message: str, patience: float) -> bool:
        """Whether the cell ended in time; what it said is in `text`."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            try:
                answer = self.notebook.client.get_iopub_msg(timeout=min(left, 0.2))
            except queue.Empty:
                continue
            if answer["parent_header"].get("msg_id") != message:
                continue
            kind, content = answer["msg_type"], answer["content"]
            if kind == "stream":
                self.text += content["text"]
            elif kind in ("display_data", "update_display_data"):
                self.text += content["data"].get("text/plain", "")
            elif kind == "error":
                self.text += "\n" + ANSI.sub("", "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return True
        return False

    def interrupt(self) -> None:
        self.notebook.manager.interrupt_kernel()


@dataclass(frozen=True)
class Fault:
    """cell: what the ranks run; where it prints AT and a time, that is when the fault was.

    act: what is done after a second, if anything. named: what a person must be told, as a pattern.
    """

    name: str
    cell: str
    named: str
    act: Callable[[Driven], None] | None = None


@dataclass(frozen=True)
class Seen:
    """seconds: until the kernel had control, None: not within PATIENCE."""

    seconds: float | None
    named: bool
    next_works: bool


def kill_a_rank(driven: Driven) -> None:
    os.kill(driven.ranks[1], signal.SIGKILL)


FAULTS = (
    Fault(
        "rank 1 raises, rank 0 waits for it",
        "if rank:\n    time.sleep(0.5)\n    print('AT', time.time())\n    raise ValueError('boom')\ntotal()",
        "ValueError: boom",
    ),
    Fault("interrupt of `while True: pass`", "while True: pass", "keyboard ?interrupt|signal: 2", Driven.interrupt),
    Fault(
        "interrupt of a blocked all-reduce",
        "if rank == 0: total()\nelse: time.sleep(1000)",
        "keyboard ?interrupt|signal: 2",
        Driven.interrupt,
    ),
    Fault("SIGKILL of a rank", "time.sleep(1000) if rank else total()", "SIGKILL", kill_a_rank),
)


def suffer(make: type[Notebook], fault: Fault) -> Seen:
    """A fault in a notebook of its own."""
    notebook = make()
    notebook.__enter__()
    family: list[psutil.Process] = []
    with scratch() as folder:
        driven = Driven(notebook, folder)
        try:
            notebook.connect()
            assert driven.collect(driven.send(SUM), 60) and "sum 2" in driven.text, driven.text
            family = psutil.Process(notebook.pid).children(recursive=True)
            message, at = driven.send(fault.cell), 0.0
            if fault.act is not None:
                driven.begun()
                time.sleep(1)
                at = time.time()
                fault.act(driven)
            ended = driven.collect(message, PATIENCE)
            back = time.time()
            if told := re.search(r"AT ([\d.]+)", driven.text):
                at = float(told[1])
            named = re.search(fault.named, ANSI.sub("", driven.text), re.IGNORECASE) is not None
            time.sleep(PAUSE)
            works = ended and driven.collect(driven.send(SUM), PATIENCE) and "sum 2" in driven.text
            return Seen(back - at if ended else None, named, works)
        finally:
            end(notebook, family)


def kernel_killed(make: type[Notebook]) -> int:
    """How many of a killed kernel's ranks, launchers and helpers still live after ORPHANS seconds."""
    notebook = make()
    notebook.__enter__()
    family: list[psutil.Process] = []
    try:
        notebook.connect()
        notebook.on_ranks(notebook.who + SUM)
        family = psutil.Process(notebook.pid).children(recursive=True)
        os.kill(notebook.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, ORPHANS)
        return len(alive)
    finally:
        for process in family:  # our own, by their ids
            if process.is_running():
                process.kill()
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel(now=True)


def end(notebook: Notebook, family: list[psutil.Process]) -> None:
    """Whatever state it is in: the kernel and what descends from it (psutil tells a process from a later one of its id)."""
    family = [*family, *psutil.Process(notebook.pid).children(recursive=True)]
    notebook.client.stop_channels()
    notebook.manager.shutdown_kernel(now=True)
    for process in family:
        if process.is_running():
            process.kill()


def report(libraries: Sequence[type[Notebook]] = (Nbpar, Ipyparallel)) -> str:
    """The table."""
    lines = ["| fault | library | kernel has control after | cause named | next cell works |", "|---|---|---|---|---|"]
    for fault in FAULTS:
        lines += [line(fault.name, make.name, suffer(make, fault)) for make in libraries]
    for make in libraries:
        lines.append(left_line(make.name, kernel_killed(make)))
    return "\n".join(lines)


def line(fault: str, library: str, seen: Seen) -> str:
    after = f"not within {PATIENCE:.0f} s" if seen.seconds is None else f"{seen.seconds:.2f} s"
    words = {True: "yes", False: "no"}
    return f"| {fault} | {library} | {after} | {words[seen.named]} | {words[seen.next_works]} |"


def left_line(library: str, left: int) -> str:
    return f"| SIGKILL of the kernel | {library} | {left} processes left after {ORPHANS:.0f} s | – | – |"
