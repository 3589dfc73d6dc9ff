"""256 MiB of float32 from the kernel to two ranks and back, what that costs in memory, and what a second send costs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import RANKS, Row, alternate
from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

MIB = 256
RUNS, WORLDS = 5, 3
COLD, WARM = 2, 2  # pushes of each world; the first ones go into memory that no message has used before
MAKE = f"import torch\nx = torch.rand({MIB << 18})"
TOUCH = "last = x[::1024].sum().item()"  # a number of each page of memory


def rows() -> list[Row]:
    with Nbpar() as ours, Ipyparallel() as theirs:
        for notebook in (ours, theirs):
            notebook.connect()
            notebook.on_ranks("import torch")
        cold, warm, pushed = push_worlds(ours, theirs)
        ours.run(MAKE)
        growth = [peak_growth(ours, lambda: ours.on_ranks(TOUCH))]
        theirs.run(MAKE)
        their_growth = [peak_growth(theirs, lambda: theirs.run("view.push({'x': x}, block=True)"))]
        again = alternate(RUNS, lambda: ours.on_ranks(TOUCH)[0] * 1e3, lambda: ours.on_ranks("pass")[0] * 1e3)
        pulled = alternate(RUNS, lambda: pull(ours), lambda: pull_ipyparallel(theirs))
        copies = [copy_seconds(ours) for _ in range(RUNS)]
    size = f"{MIB} MiB"
    return [
        Row(f"push {size} to {RANKS}, memory used before", warm, Ipyparallel.name, pushed, "s", "≥ 10×"),
        Row(f"push {size} to {RANKS}, new memory", cold, Ipyparallel.name, pushed, "s", "≥ 10×"),
        Row(f"push {size} to {RANKS}, memory used before", warm, "one copy in memory", copies, "s"),
        Row("push: kernel's peak growth", growth, Ipyparallel.name, their_growth, "MiB", f"≤ {MIB * 1.05:.0f}"),
        Row("push of the same array again", again[0], "empty cell", again[1], "ms"),
        Row(f"pull {size} from each of {RANKS}", pulled[0], Ipyparallel.name, pulled[1], "s"),
    ]


def push_worlds(ours: Notebook, theirs: Notebook) -> tuple[list[float], list[float], list[float]]:
    """Seconds of pushes into new memory, into memory used before, and of the peer. Each new world begins without memory."""
    cold, warm, peer = [], [], []
    for _ in range(WORLDS):
        ours.disconnect()
        ours.connect()
        ours.on_ranks("import torch")
        pushed, pushed_by_peer = alternate(COLD + WARM, lambda: push(ours), lambda: push_ipyparallel(theirs))
        cold, warm, peer = cold + pushed[:COLD], warm + pushed[COLD:], peer + pushed_by_peer
    return cold, warm, peer


def push(notebook: Notebook) -> float:
    """A new tensor each time, so that nothing is known from before; the ranks read it all."""
    notebook.run(MAKE)
    return notebook.on_ranks(TOUCH)[0]


def push_ipyparallel(notebook: Notebook) -> float:
    notebook.run(MAKE)
    return notebook.run("view.push({'x': x}, block=True)")[0]


def pull(notebook: Notebook) -> float:
    """The cell that makes the tensors brings them back; what making them takes alone is taken off."""
    made = f"import nbpar\ny = torch.full(({MIB << 18},), float(nbpar.rank() + 1))"
    alone = notebook.on_ranks(made, "--keep y")[0]
    seconds = notebook.on_ranks(made, "--out y")[0] - alone
    assert notebook.value("[part[-1].item() for part in y]") == [1.0, 2.0]
    return seconds


def pull_ipyparallel(notebook: Notebook) -> float:
    notebook.on_ranks(f"y = torch.full(({MIB << 18},), 1.0)")
    return notebook.run("y = view.pull('y', block=True)")[0]


def copy_seconds(notebook: Notebook) -> float:
    """What the machine needs to copy the tensor once, into memory that is already there."""
    cell = "import time; z = torch.ones_like(x); start = time.perf_counter(); z.copy_(x); time.perf_counter() - start"
    return float(notebook.run(cell)[1].text)


def peak_growth(notebook: Notebook, action: Callable[[], object]) -> float:
    """MiB by which the kernel's resident memory rises at most during the action (Linux: peak mark reset before)."""
    process = Path("/proc", str(notebook.pid))
    (process / "clear_refs").write_text("5")
    time.sleep(0.1)
    before = peak(process)
    action()
    return max(0.0, (peak(process) - before) / 1024)


def peak(process: Path) -> float:
    """KiB of the highest resident size since the mark was reset."""
    found = re.search(r"VmHWM:\s+(\d+)", (process / "status").read_text())
    return float(found[1]) if found else 0.0
