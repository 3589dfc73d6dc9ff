"""What it costs that `%%parallel data` tries out a call before it splits it, in units of one forward of one process."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

from benchmarks.data import CNN, ROUNDS, WORKLOADS, Workload, prepared
from benchmarks.harness import RANKS, Row
from benchmarks.sides import rest

PEER = "its forward in one process"
FLOOR = "two forwards of a check's rows under an empty TorchDispatchMode, one agreement"
NAMES = ("MLP, 8 MiB of gradients", "CNN, 64 images of 32×32", "GPT, 0.8 M parameters", "GPT, 10 M parameters", "tiny RNN")

Figures = dict[str, list[float]]


def rows() -> list[Row]:
    """Of some of the workloads of `data`, in one launch of ranks."""
    from tests.ranks import run_ranks

    workloads = [workload for workload in WORKLOADS if workload.name in NAMES]
    many = CNN.replace("64, 3, 32, 32", "256, 3, 32, 32").replace("(64,)", "(256,)")
    workloads.insert(2, replace(workloads[1], name="CNN, 256 images of 32×32", setup=many))
    table = []
    for workload, figures in zip(workloads, run_ranks(RANKS, measure, workloads, timeout=500)[0], strict=True):
        table.append(Row(f"checks of a first call: {workload.name}", figures["first"], PEER, figures["forward"], "ms", "≤ 1×"))
        table.append(Row(f"rows of these checks: {workload.name}", figures["rows"], "", [], "forwards", "≤ 1"))
        table.append(Row(f"the least of them: {workload.name}", figures["first"], FLOOR, figures["floor"], "ms"))
        table.append(Row(f"a later look: {workload.name}", figures["later"], PEER, figures["forward"], "ms"))
    return table


def measure(workloads: list[Workload]) -> list[Figures]:
    """On every rank: ms of the checks of a first step and of a first step in a later cell, of the least that such a check is, and
    of a forward in rank 0 alone; and the rows of a first step's checks, in forwards.
    """
    return [of(prepared(workload, None), workload.loss) for workload in workloads]


def of(names: dict[str, Any], loss: str) -> Figures:
    """The first round warms up and is dropped."""
    import torch.distributed as dist

    figures: Figures = {"first": [], "later": [], "forward": [], "rows": [], "floor": []}
    original = names["model"]
    for _ in range(ROUNDS + 1):
        names["model"] = copy.deepcopy(original)  # of which nothing is known
        for when in ("first", "later"):
            rest()
            seconds, forwards = checks(names, loss)
            figures[when].append(seconds * 1e3)
            if when == "first":
                figures["rows"].append(forwards)
        rest()
        figures["floor"].append(floor(names) * 1e3)
        rest()
        if dist.get_rank() == 0:
            figures["forward"].append(forward(names) * 1e3)
    return {name: times[1:] for name, times in figures.items()}


def checks(names: dict[str, Any], loss: str) -> tuple[float, float]:
    """Seconds that the checks take in a cell of one step, and the rows that they put through, as its closing line says."""
    from nbpar.parallel import mode

    with mode("data", {}, names) as report:
        exec(f"loss = {loss}\nloss.backward()\ndel loss", names)
    return float(report.details["check seconds"]), float(report.details["check forwards"])


def floor(names: dict[str, Any]) -> float:
    """Seconds of a row a rank, whole and split, where operators are seen and nothing is made of it, and of a word of all ranks."""
    from nbpar.parallel.data.ranks import Ranks
    from nbpar.uncompiled import Mode

    class Seen(Mode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    model, x, ranks = names["model"], names["x"], Ranks()
    began = time.perf_counter()
    for rows in (RANKS, 1):
        with Seen():
            model(x[:rows])
    ranks.agree(True)
    return time.perf_counter() - began


def forward(names: dict[str, Any]) -> float:
    model, x = names["model"], names["x"]
    model(x)
    began = time.perf_counter()
    model(x)
    return time.perf_counter() - began
