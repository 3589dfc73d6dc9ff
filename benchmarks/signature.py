"""What it costs that ranks in lockstep compare what they are about to call: a training step and an all-reduce, with and without."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.harness import RANKS, Row

ROUNDS = 15
STEPS = 12
CALLS = 400
PEER = "the same, not compared"

Figures = dict[bool, list[float]]  # by whether ranks compare


def rows() -> list[Row]:
    from tests.ranks import run_ranks

    data, model, call = run_ranks(RANKS, measure, timeout=300)[0]
    return [
        Row("signatures: step under `data`, 8 MiB of weights", data[True], PEER, data[False], "ms", "≤ 1.01×"),
        Row("signatures: step under `model`, 8 MiB of weights", model[True], PEER, model[False], "ms", "≤ 1.01×"),
        Row("signatures: all-reduce of 1 KiB", call[True], PEER, call[False], "µs"),
    ]


def measure() -> tuple[Figures, Figures, Figures]:
    """On every rank: ms a step under `data` and `model`, µs an all-reduce."""
    import torch

    from nbpar import comm

    small = torch.ones(256)
    return step_under("data"), step_under("model"), in_turn(lambda: comm.all_reduce_(small), CALLS, 1e6)


def step_under(mode: str) -> Figures:
    import random

    import numpy as np
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    from nbpar import comm, parallel

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    layers = nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512)
    model = nn.Sequential(*layers)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(64, 512), torch.randint(0, 512, (64,))

    def step() -> None:
        optimiser.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        loss.item()

    comm.trace.start(lambda name: name == __file__)
    with parallel.mode(mode, {}, {"model": model, "optimiser": optimiser, "x": x, "y": y}):
        return in_turn(step, STEPS, 1e3)


def in_turn(way: Callable[[], object], calls: int, scale: float) -> Figures:
    """Time a call, compared and not, of rounds that take the two in turn; the first round warms up and is dropped."""
    from mpi4py import MPI

    from nbpar import comm

    figures: Figures = {True: [], False: []}
    for _ in range(ROUNDS + 1):
        for compared, times in figures.items():
            MPI.COMM_WORLD.Barrier()
            comm.watch(compared)
            began = time.perf_counter()
            for _ in range(calls):
                way()
            times.append((time.perf_counter() - began) / calls * scale)
            comm.watch(False)
    return {compared: times[1:] for compared, times in figures.items()}
