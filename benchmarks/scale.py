"""What control costs as ranks grow in number: light ranks of one machine, the kernel's own World.

All ranks share the cores of this machine with the kernel, so the wall time holds the ranks' own work one after another, which on a
cluster is done at the same time. What the kernel itself spends is its thread's processor time. Beside it, what this machine needs
for the barest word to as many processes and back (benchmarks/floor.py).
"""

from __future__ import annotations

import io
import math
import os
import pickle
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import floor
from benchmarks.harness import ROOT, scratch, spread
from nbpar.ranks.channel import Message
from nbpar.ranks.world import Settings, World
from nbpar.values import KernelEnd, RankEnd

SIZES = (1, 2, 4, 8, 16, 32, 64)
CELLS = 25
LINES = 100


class Timed(World):
    """sending: seconds of the last cell spent on handing tasks to the channel."""

    sending = 0.0

    def send(self, rank: int, message: Message) -> None:
        begin = time.perf_counter()
        super().send(rank, message)
        self.sending += time.perf_counter() - begin


@dataclass(frozen=True)
class Cost:
    """Of some equal cells, in ms: handing out the tasks, the kernel's own time, until the cell has ended.

    ranks: processor time of a cell in all ranks together.
    """

    sending: list[float]
    kernel: list[float]
    wall: list[float]
    ranks: float = 0.0


def answers() -> tuple[list[bytes], list[bytes]]:
    """What ranks answer to a cell that changes nothing: rank 0, and the others."""
    packed = KernelEnd({}, 2).pack((), cell=1)
    found = []
    for rank in (0, 1):
        end = RankEnd({}, rank, 2, shared=False)
        end.load(packed.frames, [])
        found.append([bytes(frame) for frame in end.reply(1)])
    return found[0], found[1]


def cells(world: Timed, code: str) -> Cost:
    cost = Cost([], [], [])
    before = worked(world)
    for _ in range(CELLS):
        world.sending = 0.0
        begin, own = time.perf_counter(), time.thread_time()
        with redirect_stdout(io.StringIO()):
            world.run(code, quiet=True)
        cost.wall.append((time.perf_counter() - begin) * 1e3)
        cost.kernel.append((time.thread_time() - own) * 1e3)
        cost.sending.append(world.sending * 1e3)
    return replace(cost, ranks=(worked(world) - before) / CELLS)


def worked(world: World) -> float:
    """ms of processor time that the ranks have used, with all their threads (Linux)."""
    files = [file for fact in world.facts for file in Path(f"/proc/{fact['pid']}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e6


def measure(folder: Path) -> dict[int, tuple[Cost, Cost]]:
    """By number of ranks: cells that do nothing, and cells that print."""
    (folder / "answers").write_bytes(pickle.dumps(answers()))
    launcher = folder / "launcher"
    light = shlex.join([sys.executable, "-m", "benchmarks.light"])
    launcher.write_text(f'#!/bin/sh\ntest "$1" = --version && echo HYDRA && exit\nexec {light} "$2" {folder}/answers\n')
    launcher.chmod(0o755)
    found = {}
    for size in SIZES:
        world = Timed(Settings(size=size, mpiexec=str(launcher)), {})
        world.start()
        try:
            cells(world, "0")  # warm
            found[size] = cells(world, "0"), cells(world, str(LINES))
        finally:
            world.stop()
    return found


def fit(sizes: Sequence[int], costs: Sequence[float], grows: str) -> tuple[float, float, float]:
    """a and b of a + b·f(N), and the largest relative error. grows: 'N' or 'log N'."""
    xs = [math.log2(size) if grows == "log N" else float(size) for size in sizes]
    b, a = statistics.linear_regression(xs, costs)
    return a, b, max(abs(a + b * x - cost) / cost for x, cost in zip(xs, costs, strict=True))


def report() -> str:
    os.chdir(ROOT)
    with scratch() as folder:
        found = measure(folder)
    head = [
        "ranks",
        "tasks handed out, ms",
        "empty cell, ms",
        "kernel's part, ms",
        "ranks' part, together, ms",
        f"{LINES} lines a rank, ms",
        "kernel's part, ms",
        "bare ping, ms",
        f"bare ping through {floor.FAN} relays, ms",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for size, (empty, prints) in found.items():
        bare = [[floor.ping(size, tree=tree)] for tree in (False, True)]
        figures = empty.sending, empty.wall, empty.kernel, [empty.ranks], prints.wall, prints.kernel, *bare
        lines.append(f"| {size} | " + " | ".join(map(spread, figures)) + " |")
    lines.append("")
    for place, what in enumerate(("empty cell", f"cell of {LINES} lines a rank")):
        costs = [statistics.median(cost[place].kernel) for cost in found.values()]
        for grows in ("N", "log N"):
            a, b, error = fit(list(found), costs, grows)
            text = f"{what}, kernel's part ≈ {a:.2f} ms + {b * 1e3:.0f} µs · {grows} (furthest off: {error:.0%})"
            lines.append(f"- {text}; 1,000 ranks: {a + b * (1000 if grows == 'N' else math.log2(1000)):.0f} ms")
    return "\n".join(lines)
