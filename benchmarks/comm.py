"""Collectives over backend mpi against gloo and against the bare mpi4py call, and a DDP step against gloo."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.harness import RANKS, Row

ROUNDS = 15
SIZES = {"1 KiB": (1 << 10, 400), "1 MiB": (1 << 20, 30), "16 MiB": (16 << 20, 4)}  # bytes, calls a round
TARGETS = {"1 KiB": "≥ 10×", "1 MiB": "≥ 2×", "16 MiB": "≥ 2×"}
STEPS = 8

Figures = dict[str, list[float]]


def rows() -> list[Row]:
    """All measurements, in one launch of ranks."""
    from tests.ranks import run_ranks

    sizes, steps = run_ranks(RANKS, measure, timeout=300)[0]
    table = []
    for name, figures in sizes.items():
        table.append(Row(f"all-reduce of {name}", figures["mpi"], "gloo", figures["gloo"], "µs", TARGETS[name]))
        table.append(Row(f"all-reduce of {name}", figures["mpi"], "mpi4py Allreduce", figures["bare"], "µs", "≤ 1.3×"))
        table.append(Row(f"comm.all_reduce_ of {name}", figures["ours"], "mpi4py Allreduce", figures["bare"], "µs", "≤ 1.3×"))
        table.append(Row(f"comm.all_reduce_ of {name}", figures["ours"], "Allreduce of an address", figures["memory"], "µs"))
    table.append(Row("DDP step, 8 MiB of gradients", steps["mpi"], "DDP over gloo", steps["gloo"], "ms", "≥ 1.3×"))
    return table


def measure() -> tuple[dict[str, Figures], Figures]:
    """On every rank, with both backends in the same processes: µs an all-reduce by size, ms a DDP step."""
    import torch.distributed as dist
    from mpi4py import MPI

    from nbpar import comm

    comm.leave()
    comm.join(MPI.COMM_WORLD, "gloo")
    groups = {"gloo": dist.group.WORLD, "mpi": dist.new_group(backend="mpi")}
    return {name: all_reduces(groups, *size) for name, size in SIZES.items()}, steps(groups)


def all_reduces(groups: dict[str, object], nbytes: int, calls: int) -> Figures:
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    from nbpar.comm.join import sum_over

    tensor = torch.ones(nbytes // 4)
    bare, buffer = MPI.COMM_WORLD.Dup(), [MPI.memory.fromaddress(tensor.data_ptr(), nbytes), MPI.FLOAT]
    ways: dict[str, Callable[[], object]] = {
        "mpi": lambda: dist.all_reduce(tensor, group=groups["mpi"]),
        "gloo": lambda: dist.all_reduce(tensor, group=groups["gloo"]),
        "bare": lambda: bare.Allreduce(MPI.IN_PLACE, tensor.numpy()),
        "memory": lambda: bare.Allreduce(MPI.IN_PLACE, buffer),
        "ours": lambda: sum_over(groups["mpi"], tensor),
    }
    return in_turn(ways, calls, 1e6, lambda: tensor.fill_(1.0))


def steps(groups: dict[str, object]) -> Figures:
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    x, y = torch.randn(64, 512), torch.randint(0, 512, (64,))

    def step_over(group: object) -> Callable[[], object]:
        torch.manual_seed(0)
        layers = nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512)
        net = DistributedDataParallel(nn.Sequential(*layers), process_group=group)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01)

        def step() -> None:
            optimiser.zero_grad()
            cross_entropy(net(x), y).backward()
            optimiser.step()

        return step

    return in_turn({name: step_over(group) for name, group in groups.items()}, STEPS, 1e3, lambda: None)


def in_turn(ways: dict[str, Callable[[], object]], calls: int, scale: float, prepare: Callable[[], object]) -> Figures:
    """Time a call, by way, of rounds that take the ways in turn; the first round warms up and is dropped."""
    from mpi4py import MPI

    figures: Figures = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            prepare()
            MPI.COMM_WORLD.Barrier()
            began = time.perf_counter()
            for _ in range(calls):
                way()
            figures[name].append((time.perf_counter() - began) / calls * scale)
    return {name: times[1:] for name, times in figures.items()}
