"""What it costs to watch a cell, and how a predicted pipeline compares with the measured one.

Watched and quiet cells run in many short turns, in the order AB BA AB …, and each is compared with its neighbour: a machine that
becomes slower meanwhile slows both. Even so wall times of neighbours differ by more than is to be measured, so the steps' ratio is
the median of seven pairs at a time; processor time of the threads that do not train, which other programs disturb least, is the
finer figure. What panels cost once, when they appear and when the cell ends, is told apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import RANKS, Row
from benchmarks.notebooks import Nbpar

SECONDS = 90.0  # of all turns
TURN = 1.0  # seconds of a cell
AFTER = 0.1  # seconds after which a cell here has panels: not two, so that turns can be short
UP = 0.3  # seconds after which it is measured
SETUP = """
import time, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(6)], nn.Linear(512, 10))
opt = torch.optim.SGD(model.parameters(), lr=1e-3)
X, y = torch.randn({rows}, 512), torch.randint(10, ({rows},))
"""
STEPS = """
for step in range({steps}):
    opt.zero_grad()
    loss = F.cross_entropy(model(X), y)
    loss.backward()
    opt.step()
"""
CLOCKS = "(step, time.perf_counter(), time.clock_gettime({clock}), time.process_time(), time.thread_time())"
TIMED = f"""
up, early = time.perf_counter() + {UP}, None
{STEPS}    if early is None and (time.perf_counter() > up or step + 10 > {{steps}}):
        early = {CLOCKS}
late = {CLOCKS}
spent = [b - a for a, b in zip(early, late)]
"""


@dataclass(frozen=True)
class Turn:
    """One cell, from when it has panels. step: seconds, the mean: more than the median where few steps are held up. kernel, ranks:
    processor time by second, of the kernel and of the ranks' threads that do not train. once: the kernel's before and after."""

    step: float
    kernel: float
    ranks: float
    once: float


def rows() -> list[Row]:
    with Nbpar() as ours:
        ours.connect()
        pairs = in_turns(ours)
        waits, foreseen = pipeline(ours)
    watched, quiet = zip(*pairs, strict=True)

    def more(figure: Callable[[Turn], float], unit: float = 100.0) -> list[float]:
        return [unit * (figure(w) - figure(q)) for w, q in pairs]

    longer = [100 * (w.step / q.step - 1) for w, q in pairs]
    beside, cores = "the same with --quiet", "% of the ranks' cores"
    share = 100 / RANKS
    return [
        Row("a watched training step", ms(watched), beside, ms(quiet), "ms"),
        Row("a watched step is longer by", medians(longer), beside, [], "%", "≤ 2"),
        Row("watching: processor time added", more(lambda turn: turn.kernel + turn.ranks, share), beside, [], cores, "≤ 2"),
        Row("of it in the kernel", more(lambda turn: turn.kernel, share), beside, [], cores),
        Row("panels once a cell: the kernel's processor time", more(lambda turn: turn.once, 1e3), beside, [], "ms"),
        Row("a rank with --quiet, beside its training", [share * one.ranks for one in quiet], "", [], "% of a core", "≤ 0.2"),
        Row("waiting in a pipeline of two stages", waits, "as predicted", foreseen, "% of forward and backward"),
    ]


def medians(figures: list[float]) -> list[float]:
    """Of seven figures at a time."""
    return [statistics.median(figures[k : k + 7]) for k in range(0, max(1, len(figures) - 6), 7)]


def ms(turns: Any) -> list[float]:
    return [1e3 * one.step for one in turns]


def in_turns(notebook: Nbpar) -> list[tuple[Turn, Turn]]:
    """(watched, quiet) cells next to each other."""
    notebook.run(SETUP.format(rows=64))
    notebook.run(f"from nbpar.display import watch; watch.AFTER = {AFTER}")
    turn(notebook, 50, "")
    step = turn(notebook, 200, "").step
    pairs: list[tuple[Turn, Turn]] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        order = ("", "--quiet") if len(pairs) % 2 else ("--quiet", "")
        found = {options: turn(notebook, max(20, int(TURN / step)), options) for options in order}
        pairs.append((found[""], found["--quiet"]))
        step = found[order[1]].step
    return pairs


def turn(notebook: Nbpar, steps: int, options: str) -> Turn:
    clock = ~notebook.pid << 3 | 2  # of another process's processor time, as clock_getcpuclockid makes it
    before = time.clock_gettime(clock)
    notebook.run(f"%%parallel data {options}\n{TIMED.format(steps=steps, clock=clock)}")
    whole = time.clock_gettime(clock) - before
    ranks = notebook.value("[list(map(float, each)) for each in spent]")
    done, seconds, kernel, all_threads, training = (sum(each) / RANKS for each in zip(*ranks, strict=True))
    return Turn(
        seconds / done,
        kernel / seconds,
        RANKS * (all_threads - training) / seconds,
        whole - kernel,
    )


def pipeline(notebook: Nbpar) -> tuple[list[float], list[float]]:
    """Measured and predicted share of waiting in the passes of mode `model`, in %."""
    waits: list[Any] = []
    for _ in range(3):
        notebook.run(SETUP.format(rows=256))
        notebook.run(f"nbpar.world().run({STEPS.format(steps=40)!r}, mode='model', show=())")
        waits.append(notebook.value("nbpar.last().timeline.waited(-20, 20)") * 100)
    notebook.run(SETUP.format(rows=256))
    plan = "nbpar.plan(model, X, 'model', 2, optimiser=opt).waiting"
    return waits, [notebook.value(plan) * 100]
