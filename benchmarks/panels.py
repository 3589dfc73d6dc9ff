"""What it costs to watch a cell, and how a predicted pipeline compares with the measured one.

Watched and quiet cells run in turns, in the order AB BA AB …, and each is compared with its neighbour: a machine that becomes
slower meanwhile slows both. Even so wall times of neighbours differ by more than is to be measured; processor time, which other
programs disturb least, is the finer figure.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import RANKS, Row
from benchmarks.notebooks import Nbpar

SECONDS = 85.0  # of all turns
TURN = 4.5  # seconds of a cell
UP = 2.0  # seconds after which it has panels
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
TIMED = f"""
begin, spent, ends = time.perf_counter(), time.process_time() - time.thread_time(), []
{STEPS}    ends.append(time.perf_counter())
spent = time.process_time() - time.thread_time() - spent
late = [end for end in ends if end > min(begin + {UP + 0.3}, ends[-3])]
step = (late[-1] - late[0]) / (len(late) - 1)
"""


@dataclass(frozen=True)
class Turn:
    """One cell. step: seconds, the mean once panels are up, which is more than the median where few steps are held up.
    seconds: of the cell. kernel, ranks: seconds of processor time, of the ranks' without the thread that trains."""

    step: float
    seconds: float
    kernel: float
    ranks: float


def rows() -> list[Row]:
    with Nbpar() as ours:
        ours.connect()
        pairs = in_turns(ours)
        waits, foreseen = pipeline(ours)
    watched, quiet = zip(*pairs, strict=True)
    up = [one.seconds - UP for one in watched]
    shares = [100 / (RANKS * seconds) for seconds in up]
    kernel, ranks = added(pairs, "kernel", shares), added(pairs, "ranks", shares)
    rest = [100 * one.ranks / RANKS / one.seconds for one in quiet]
    beside, cores = "the same with --quiet", "% of the ranks' cores"
    return [
        Row("a watched training step", ms(watched), beside, ms(quiet), "ms"),
        Row("a watched step is longer by", [100 * (w.step / q.step - 1) for w, q in pairs], beside, [], "%", "≤ 2"),
        Row("watching: processor time added", [*map(sum, zip(kernel, ranks, strict=True))], beside, [], cores, "≤ 2"),
        Row("of it in the kernel", kernel, beside, [], cores),
        Row("a rank with --quiet, beside its training", rest, "", [], "% of a core", "≤ 0.2"),
        Row("waiting in a pipeline of two stages", waits, "as predicted", foreseen, "% of a step"),
    ]


def ms(turns: Any) -> list[float]:
    return [1e3 * one.step for one in turns]


def added(pairs: list[tuple[Turn, Turn]], name: str, shares: list[float]) -> list[float]:
    """Processor time that a watched cell took more than its neighbour, as a share of the time in which it had panels."""
    return [(getattr(w, name) - getattr(q, name)) * share for (w, q), share in zip(pairs, shares, strict=True)]


def in_turns(notebook: Nbpar) -> list[tuple[Turn, Turn]]:
    """(watched, quiet) cells next to each other."""
    notebook.run(SETUP.format(rows=64))
    step = turn(notebook, 100, "").step
    pairs: list[tuple[Turn, Turn]] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        order = ("", "--quiet") if len(pairs) % 2 else ("--quiet", "")
        steps = int(TURN / step)
        found = {options: turn(notebook, steps, options) for options in order}
        pairs.append((found[""], found["--quiet"]))
        step = found[order[1]].step
    return [pair for pair in pairs if min(one.seconds for one in pair) > UP + 1] or pairs


def turn(notebook: Nbpar, steps: int, options: str) -> Turn:
    before = notebook.value("time.process_time()")
    seconds, _ = notebook.run(f"%%parallel data {options}\n{TIMED.format(steps=steps)}")
    kernel = notebook.value("time.process_time()") - before
    step, spent = (notebook.value(f"list(map(float, {name}))") for name in ("step", "spent"))
    return Turn(statistics.mean(step), seconds, kernel, sum(spent))


def pipeline(notebook: Nbpar) -> tuple[list[float], list[float]]:
    """Measured and predicted share of waiting under mode `model`, in %."""
    waits: list[Any] = []
    for _ in range(3):
        notebook.run(SETUP.format(rows=256))
        notebook.run(f"nbpar.world().run({STEPS.format(steps=40)!r}, mode='model', show=())")
        waits.append(notebook.value("(lambda t: t.shares(*t.window(-20, 20))['wait'])(nbpar.last().timeline)") * 100)
    notebook.run(SETUP.format(rows=256))
    plan = "nbpar.plan(model, X, 'model', 2, optimiser=opt).waiting"
    return waits, [notebook.value(plan) * 100]
