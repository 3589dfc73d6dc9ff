"""The same faults under nbpar and ipyparallel: until when the kernel has control, was the cause named, does the next cell work."""

from __future__ import annotations

import os
import queue
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

PATIENCE = 20.0  # seconds after which a cell is given up
PAUSE = 1.0  # seconds before the next cell: ipykernel drops what is sent in the moment of an error
ORPHANS = 5.0  # seconds after the kernel's death
ANSI = re.compile(r"\x1b\[[0-9;]*m")
SETUP = """import os, time, torch
import torch.distributed as dist
from mpi4py import MPI
comm = MPI.COMM_WORLD
"""
SUM = f"{SETUP}print('sum', comm.allreduce(1))"


class Driven:
    """A notebook whose cells may never end."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.text = ""
        self.ranks: list[int] = []

    def pids(self) -> list[int]:
        """Of the two ranks."""
        if isinstance(self.notebook, Nbpar):
            return list(self.notebook.value("nbpar.world().pids"))
        return list(self.notebook.value("view.apply_sync(__import__('os').getpid)"))

    def send(self, cell: str) -> str:
        self.text = ""
        return self.notebook.client.execute(f"{self.notebook.magic}\n{cell}")

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
        "rank 1 raises, rank 0 waits in mpi4py",
        "if comm.rank:\n    time.sleep(0.5)\n    print('AT', time.time())\n    raise ValueError('boom')\ncomm.allreduce(1)",
        "ValueError: boom",
    ),
    Fault("interrupt of `while True: pass`", "while True: pass", "keyboard ?interrupt", Driven.interrupt),
    Fault(
        "interrupt of a blocked all-reduce",
        "if comm.rank == 0: comm.allreduce(1)\nelse: time.sleep(1000)",
        "keyboard ?interrupt",
        Driven.interrupt,
    ),
    Fault("SIGKILL of a rank", "time.sleep(1000) if comm.rank else comm.allreduce(1)", "SIGKILL", kill_a_rank),
)


def suffer(make: type[Notebook], fault: Fault) -> Seen:
    """A fault in a notebook of its own."""
    notebook = make()
    notebook.__enter__()
    driven = Driven(notebook)
    try:
        notebook.connect()
        assert driven.collect(driven.send(SUM), 60) and "sum 2" in driven.text, driven.text
        driven.ranks = driven.pids()
        message, at = driven.send(SETUP + fault.cell), 0.0
        if fault.act is not None:
            time.sleep(1)
            at = time.time()
            fault.act(driven)
        ended = driven.collect(message, PATIENCE)
        back = time.time()
        if told := re.search(r"AT ([\d.]+)", driven.text):
            at = float(told[1])
        named = ended and re.search(fault.named, driven.text, re.IGNORECASE) is not None
        time.sleep(PAUSE)
        works = ended and driven.collect(driven.send(SUM), PATIENCE) and "sum 2" in driven.text
        return Seen(back - at if ended else None, named, works)
    finally:
        end(notebook, driven.ranks)


def kernel_killed(make: type[Notebook]) -> int:
    """How many of a killed kernel's ranks, launchers and helpers still live after ORPHANS seconds."""
    import psutil

    notebook = make()
    notebook.__enter__()
    family: list[psutil.Process] = []
    try:
        notebook.connect()
        notebook.on_ranks(SUM)
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


def end(notebook: Notebook, ranks: list[int]) -> None:
    """Whatever state it is in: the kernel, its children and the ranks, by their ids."""
    import psutil

    family = psutil.Process(notebook.pid).children(recursive=True)
    family += [psutil.Process(pid) for pid in ranks if psutil.pid_exists(pid)]
    notebook.client.stop_channels()
    notebook.manager.shutdown_kernel(now=True)
    for process in family:
        if process.is_running():
            process.kill()


def report() -> str:
    """The table."""
    libraries = (Nbpar, Ipyparallel)
    lines = ["| fault | library | kernel has control after | cause named | next cell works |", "|---|---|---|---|---|"]
    for fault in FAULTS:
        for make in libraries:
            seen = suffer(make, fault)
            after = f"not within {PATIENCE:.0f} s" if seen.seconds is None else f"{seen.seconds:.2f} s"
            words = {True: "yes", False: "no"}
            lines.append(f"| {fault.name} | {make.name} | {after} | {words[seen.named]} | {words[seen.next_works]} |")
    for make in libraries:
        left = kernel_killed(make)
        lines.append(f"| SIGKILL of the kernel | {make.name} | {left} processes left after {ORPHANS:.0f} s | – | – |")
    return "\n".join(lines)
