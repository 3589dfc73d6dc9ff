"""What it costs to watch a cell, and how a predicted pipeline compares with the measured one."""

from __future__ import annotations

import statistics
from itertools import chain
from typing import Any

from benchmarks.harness import Row
from benchmarks.notebooks import Nbpar

ROUNDS = 7
SECONDS = 4.0
SETUP = """
import time, statistics, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(6)], nn.Linear(512, 10))
opt = torch.optim.SGD(model.parameters(), lr=1e-3)
X, y = torch.randn(256, 512), torch.randint(10, (256,))
"""
STEPS = """
times = []
for step in range({steps}):
    begin = time.perf_counter()
    opt.zero_grad()
    loss = F.cross_entropy(model(X), y)
    loss.backward()
    opt.step()
    times.append(time.perf_counter() - begin)
"""


def rows() -> list[Row]:
    with Nbpar() as ours:
        ours.connect()
        ours.run(SETUP)
        warm = median(ours, "data", 20, "")
        steps = max(20, int(SECONDS / warm))
        watched, quiet = [], []
        for _ in range(ROUNDS):
            quiet.append(median(ours, "data", steps, "--quiet") * 1e3)
            watched.append(median(ours, "data", steps, "") * 1e3)
        waits, foreseen = pipeline(ours)
    return [
        Row("a watched training step", watched, "the same with --quiet", quiet, "ms", "≤ 1.02×"),
        Row("waiting in a pipeline of two stages", waits, "as predicted", foreseen, "% of a step"),
    ]


def median(notebook: Nbpar, mode: str, steps: int, options: str) -> float:
    """Seconds of a step, the median over both ranks' steps: as each rank measured it, once panels are up."""
    notebook.run(f"%%parallel {mode} {options}\n{STEPS.format(steps=steps)}")
    half = notebook.value("[list(map(float, one))[len(one) // 2 :] for one in (times if isinstance(times[0], list) else [times])]")
    return statistics.median(chain.from_iterable(half))


def pipeline(notebook: Nbpar) -> tuple[list[float], list[float]]:
    """Measured and predicted share of waiting under mode `model`, in %."""
    waits: list[Any] = []
    for _ in range(3):
        notebook.run(SETUP)
        notebook.run(f"nbpar.world().run({STEPS.format(steps=40)!r}, mode='model', show=())")
        waits.append(notebook.value("(lambda t: t.shares(*t.window(-20, 20))['wait'])(nbpar.last().timeline)") * 100)
    notebook.run(SETUP)
    plan = "nbpar.plan(model, X, 'model', 2, optimiser=opt).waiting"
    return waits, [notebook.value(plan) * 100]
