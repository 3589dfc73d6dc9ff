"""A training step under `%%parallel model --how tensor`, against one process and torch's own `parallelize_module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import RANKS, Row
from benchmarks.model import LOSS, SETUP, Figures, alone, in_turn, prepared, repeat, split, timed


def rows() -> list[Row]:
    from tests.ranks import run_ranks

    figures = run_ranks(RANKS, measure, timeout=500)[0]
    what, ours = "GPT, each layer split", figures.pop("ours")
    return [Row(what, ours, peer, its, "ms", "≥ 1×" if "gloo" in peer else "") for peer, its in figures.items()]


def measure() -> Figures:
    """On every rank: ms a step, by way."""
    import torch.distributed as dist
    from mpi4py import MPI
    from torch.distributed.distributed_c10d import _update_default_pg

    from nbpar import comm

    comm.leave()
    comm.join(MPI.COMM_WORLD, "gloo")
    gloo = dist.group.WORLD
    _update_default_pg(dist.new_group(backend="mpi"))
    return in_turn(
        {
            "ours": split(SETUP, LOSS, {"how": "tensor"}),
            "one process": alone(SETUP, LOSS),
            "torch's parallelize_module over gloo": by_dtensor(gloo),
        }
    )


def by_dtensor(group: Any) -> Callable[[int], float]:
    """The same layers as DTensors: the two Linears of each MLP by columns and then rows, the others gathered."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    names, step = prepared(SETUP, LOSS)
    model = names["model"]

    def gathered() -> ColwiseParallel:
        return ColwiseParallel(output_layouts=Replicate())

    plan: dict[str, Any] = {name: gathered() for name in ("wte", "wpe", "head")}
    for k in range(len(model.layers)):
        plan |= {f"layers.{k}.qkv": gathered(), f"layers.{k}.out": gathered()}
        plan |= {f"layers.{k}.mlp.0": ColwiseParallel(), f"layers.{k}.mlp.2": RowwiseParallel()}
    parallelize_module(model, DeviceMesh.from_group(group, "cpu"), plan)
    names["opt"] = type(names["opt"])(model.parameters(), lr=0.01)
    return lambda steps: timed(lambda: repeat(step, 1, names), steps)
