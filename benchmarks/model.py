"""A training step under `%%parallel model`: pipelined against one process and torch's own pipelines, and branches side by side."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.data import GPT, repeat
from benchmarks.harness import RANKS, Row
from benchmarks.sides import on_two_sides, rest

ROUNDS = int(os.environ.get("NBPAR_BENCH_ROUNDS", "7"))
STEPS = 4  # in one round
WARM = 7  # steps of a round that are not timed: what moves is learnt in the first, then whether to lend cores is measured
MICRO = 4
BOUND = RANKS * MICRO / (MICRO + RANKS - 1)  # of the speed-up of a pipeline
TARGET = f"≥ {0.9 * BOUND:.2f}×"
SETUP = f"""{GPT.replace("        self.head.weight = self.wte.weight", "")}
model = GPT(512, 256, 8, 8, 64)
x, y = torch.randint(0, 512, (16, 64)), torch.randint(0, 512, (16, 64))
"""
LOSS = "F.cross_entropy(model(x).flatten(0, 1), y.flatten())"
BRANCHES = """
def deep():
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.Tanh())])
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(1024, 1024), deep(), deep(), nn.Linear(1024, 10)

    def forward(self, x):
        h = self.first(x)
        {body}

model = Two()
x, y = torch.randn(256, 1024), torch.randint(0, 10, (256,))
"""
ORDERS = {
    "a(h) + b(h)": "return self.last(self.a(h) + self.b(h))",
    "b(h), then a(h)": "late = self.b(h); return self.last(self.a(h) + late)",
}
PLACES = {"first": 0, "a": 0, "b": 1, "last": 0}

Figures = dict[str, list[float]]
Ways = dict[str, Callable[[], Callable[[int], float]]]  # how each is made; that gives seconds of so many steps


def rows() -> list[Row]:
    nbpar, peers = on_two_sides(measure, timeout=150 * (ROUNDS + 1))
    pipelined, *branches = ({**ours, **theirs} for ours, theirs in zip(nbpar, peers, strict=True))
    whole = "GPT, called whole"
    what, ours = f"GPT, {MICRO} micro-batches", pipelined["ours"]
    table = [Row(what, ours, "one process", pipelined["one"], "ms", TARGET)]
    for peer in ("GPipe over gloo", "1F1B over gloo", "GPipe over mpi", "1F1B over mpi"):
        table.append(Row(what, ours, f"torch's {peer}", pipelined[peer], "ms", "≥ 1×" if "gloo" in peer else ""))
    table.append(Row(what, ours, "the same pipeline by hand, mpi4py", pipelined["by hand"], "ms"))
    table.append(Row(whole, pipelined["ours, whole"], "one process", pipelined["one"], "ms"))
    table.append(Row(whole, pipelined["ours, whole"], "one process, all cores", pipelined["one, all cores"], "ms"))
    for order, figures in zip(ORDERS, branches, strict=True):
        table.append(Row(f"two branches, {order}", figures["ours"], "one process", figures["one"], "ms", "≥ 1.5×"))
    return table


def measure(ours: bool, gloo: Any) -> list[Figures]:
    """On every rank: ms a step by the ways of its side, of the GPT and then of the branches in each order."""
    import torch.distributed as dist

    from nbpar.ranks import machine

    groups = {"gloo": gloo, "mpi": dist.group.WORLD}
    ways: Ways = {"one": lambda: alone(SETUP, LOSS), "ours": lambda: split(SETUP, LOSS, {"micro": MICRO})}
    for name, group in groups.items():
        for schedule in ("GPipe", "1F1B"):
            ways[f"{schedule} over {name}"] = functools.partial(pipeline, schedule, group)
    ways["by hand"] = by_hand
    ways["ours, whole"] = lambda: split(SETUP, LOSS, {})
    ways["one, all cores"] = lambda: alone(SETUP, LOSS, machine.cores())
    figures = [in_turn(ways, ours)]
    for body in ORDERS.values():
        branches, loss = BRANCHES.replace("{body}", body), "F.cross_entropy(model(x), y)"
        two: Ways = {
            "one": functools.partial(alone, branches, loss),
            "ours": functools.partial(split, branches, loss, {"place": PLACES}),
        }
        figures.append(in_turn(two, ours))
    return figures


def in_turn(ways: Ways, ours: bool) -> Figures:
    """ms a step of this side's ways; the first round warms up and is dropped."""
    here = {way: make() for way, make in ways.items() if way.startswith("ours") == ours}
    figures: Figures = {way: [] for way in here}
    for _ in range(ROUNDS + 1):
        for way in ways:
            rest()
            if way in here:
                figures[way].append(here[way](STEPS) / STEPS * 1e3)
    return {way: times[1:] for way, times in figures.items()}


def prepared(setup: str, loss: str) -> tuple[dict[str, Any], Any]:
    """The names of a step, and the step."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(setup, names)
    names["opt"] = torch.optim.SGD(names["model"].parameters(), lr=0.01)
    return names, compile(f"opt.zero_grad()\nloss = {loss}\nloss.backward()\nopt.step()\ndel loss\n", "step", "exec")


def alone(setup: str, loss: str, threads: int = 1) -> Callable[[int], float]:
    """In rank 0 alone; the others wait."""
    import torch
    import torch.distributed as dist

    names, step = prepared(setup, loss)

    def run(steps: int) -> float:
        if dist.get_rank():
            return 0.0
        torch.set_num_threads(threads)
        try:
            return timed(lambda: repeat(step, 1, names), steps)
        finally:
            torch.set_num_threads(1)

    return run


def split(setup: str, loss: str, options: dict[str, object]) -> Callable[[int], float]:
    from nbpar.parallel import mode
    from nbpar.ranks.prepare import seed_everything

    names, step = prepared(setup, loss)

    def run(steps: int) -> float:
        seed_everything(0)  # ranks enter a mode with equal random states
        with mode("model", options, names):
            return timed(lambda: repeat(step, 1, names), steps)

    return run


def pipeline(schedule: str, group: Any) -> Callable[[int], float]:
    """The same model as torch.distributed.pipelining splits it, in the middle."""
    import torch
    import torch.distributed as dist
    from torch.distributed import pipelining
    from torch.nn.functional import cross_entropy

    names, _ = prepared(SETUP, LOSS)
    model, x, y, rank = names["model"], names["x"], names["y"], dist.get_rank()
    pipe = pipelining.pipeline(model, (x.chunk(MICRO)[0],), {}, split_spec={"layers.4": pipelining.SplitPoint.BEGINNING})
    stage = pipe.build_stage(rank, torch.device("cpu"), group)
    made = {"GPipe": pipelining.ScheduleGPipe, "1F1B": pipelining.Schedule1F1B}[schedule](
        stage, MICRO, loss_fn=lambda output, target: cross_entropy(output.flatten(0, 1), target.flatten())
    )
    optimiser = torch.optim.SGD(stage.submod.parameters(), lr=0.01)

    def step() -> None:
        optimiser.zero_grad()
        if rank:
            made.step(target=y, losses=[])
        else:
            made.step(x)
        optimiser.step()

    return lambda steps: timed(step, steps)


def by_hand() -> Callable[[int], float]:
    """The same model, cut in the same place, as one writes it for two ranks: each piece's loss apart, no mode, no checks."""
    import torch
    from mpi4py import MPI
    from torch.nn.functional import cross_entropy

    from nbpar.comm import world

    names, _ = prepared(SETUP, LOSS)
    model, x, y, comm = names["model"], names["x"], names["y"], world().Dup()
    first, second = model.layers[:4], model.layers[4:]
    mine = (model.wte, model.wpe, first) if comm.rank == 0 else (second, model.ln, model.head)
    optimiser = torch.optim.SGD([value for part in mine for value in part.parameters()], lr=0.01)

    def front() -> None:
        sent, outputs = [], []
        for piece in x.chunk(MICRO):
            value = model.wte(piece) + model.wpe(torch.arange(piece.shape[1]))
            for layer in first:
                value = layer(value)
            outputs.append(value)
            sent.append(comm.Isend(value.detach().numpy(), 1))
        for value in reversed(outputs):
            gradient = torch.empty_like(value)
            comm.Recv(gradient.numpy(), 1)
            value.backward(gradient)
        MPI.Request.Waitall(sent)

    def back() -> None:
        sent, pieces = [], []
        for target in y.chunk(MICRO):
            entry = torch.empty(*target.shape, model.wpe.embedding_dim)
            comm.Recv(entry.numpy(), 0)
            value = entry.requires_grad_()
            for layer in second:
                value = layer(value)
            logits = model.head(model.ln(value))
            pieces.append((entry, cross_entropy(logits.flatten(0, 1), target.flatten()) / MICRO))
        for entry, loss in reversed(pieces):
            loss.backward()
            assert entry.grad is not None
            sent.append(comm.Isend(entry.grad.numpy(), 0))
        MPI.Request.Waitall(sent)

    def step() -> None:
        optimiser.zero_grad()
        back() if comm.rank else front()
        optimiser.step()

    return lambda steps: timed(step, steps)


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds of `steps` of them, after some that are not timed."""
    for _ in range(WARM):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - began
