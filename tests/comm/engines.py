"""Programs on torch.distributed's engines, written as users write them: each returns what it computed, as plain lists."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from nbpar import comm

WIDTHS = (12, 24, 18, 6)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(*size, dtype=torch.float64), nn.Tanh()) for size in pairwise(WIDTHS)))


def batch(seed: int = 1, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTHS[0], generator=stream, dtype=torch.float64)
    return x, torch.randint(0, WIDTHS[-1], (rows,), generator=stream)


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def train(net: nn.Module, steps: int = 3) -> list[float]:
    """Losses of a few steps on this rank's own batches."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        x, y = batch(10 * step + dist.get_rank())
        optimiser.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def weights(net: nn.Module) -> list[Any]:
    return [full(parameter).tolist() for parameter in net.parameters()]


def full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def ddp() -> Any:
    net = DistributedDataParallel(model(), bucket_cap_mb=0.001)
    return train(net), weights(net)


def ddp_with_buffers_and_unused() -> Any:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = model(), nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(WIDTHS[-1], dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.body(x))

    net = DistributedDataParallel(Net(), find_unused_parameters=True)
    return train(net), weights(net), [buffer.tolist() for buffer in net.buffers()]


def ddp_join() -> Any:
    net = DistributedDataParallel(model())
    losses = []
    with net.join():
        for step in range(1 + dist.get_rank()):
            loss = cross_entropy(net(batch(step)[0]), batch(step)[1])
            loss.backward()
            losses.append(loss.item())
    return losses, [parameter.grad.tolist() for parameter in net.parameters()]


def ddp_comm_hook() -> Any:
    def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations and wants none as text
        work = dist.all_reduce(bucket.buffer().mul_(2), async_op=True)
        return work.get_future().then(lambda future: future.value()[0] / 3)

    net = DistributedDataParallel(model(), bucket_cap_mb=0.001)
    net.register_comm_hook(None, hook)
    return train(net), weights(net)


def replicate() -> Any:
    from torch.distributed._composable.replicate import replicate

    net = replicate(model())
    return train(net), weights(net)


def fully_shard() -> Any:
    from torch.distributed.fsdp import fully_shard

    net = model()
    for part in net:
        fully_shard(part, mesh=mesh())
    fully_shard(net, mesh=mesh())
    return train(net), weights(net)


def tensor_parallel() -> Any:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    net = model()
    parallelize_module(net, mesh(), {"0.0": ColwiseParallel(), "1.0": RowwiseParallel()})
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        x, y = batch(step)
        optimiser.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, weights(net)


def dtensor() -> Any:
    size = dist.get_world_size()
    stream = torch.Generator().manual_seed(3)
    whole = torch.randn(3 * size + 1, 2 * size, generator=stream, dtype=torch.float64)
    rows = distribute_tensor(whole, mesh(), [Shard(0)])
    columns = rows.redistribute(placements=[Shard(1)])
    product = (columns @ rows.t().redistribute(placements=[Shard(0)])).redistribute(placements=[Replicate()])
    return columns.to_local().tolist(), product.full_tensor().tolist(), rows.sum().full_tensor().item()


def mesh_of_two_dimensions() -> Any:
    grid = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("rows", "columns"))
    mine = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(mine, group=grid.get_group("columns"))
    dist.all_reduce(mine, group=grid.get_group("rows"))
    return mine.tolist(), grid.get_coordinate(), grid["columns"].size()


def pipeline(schedule_name: str) -> Any:
    from torch.distributed import pipelining

    rank, size = dist.get_rank(), dist.get_world_size()
    net = model()
    stages = [net[0], nn.Sequential(*net[1:])] if size == 2 else [net[0], net[1], net[2]]
    stage = pipelining.PipelineStage(stages[rank], rank, size, torch.device("cpu"))
    schedule = getattr(pipelining, schedule_name)(stage, n_microbatches=4, loss_fn=cross_entropy)
    optimiser = torch.optim.SGD(stages[rank].parameters(), lr=0.1)
    history = []
    for step in range(3):
        x, y = batch(step)
        optimiser.zero_grad()
        losses: list[torch.Tensor] = []
        inputs = (x,) if rank == 0 else ()
        schedule.step(*inputs, **({"target": y, "losses": losses} if rank == size - 1 else {}))
        optimiser.step()
        history.append([loss.item() for loss in losses])
    return history, weights(stages[rank])


def gpipe() -> Any:
    return pipeline("ScheduleGPipe")


def one_forward_one_backward() -> Any:
    return pipeline("Schedule1F1B")


def checkpoint(folder: str) -> Any:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    net = model()
    fully_shard(net, mesh=mesh())
    train(net, 1)
    saved = weights(net)
    dcp.save({"net": net.state_dict()}, checkpoint_id=folder)
    other = copy.deepcopy(model())
    fully_shard(other, mesh=mesh())
    state = {"net": other.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    other.load_state_dict(state["net"])
    assert weights(other) == saved
    return saved


def objects() -> Any:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = {"rank": rank, "text": "x" * (10 * rank + 1), "tensor": torch.arange(rank).tolist()}
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, mine)
    told = [mine, "b" * rank] if rank == 1 else [None, None]
    dist.broadcast_object_list(told, src=1)
    at_root: list[Any] | None = [None] * size if rank == 0 else None
    dist.gather_object(mine, at_root, dst=0)
    part: list[Any] = [None]
    dist.scatter_object_list(part, [("part", r) for r in range(size)] if rank == 1 else None, src=1)
    if rank == 0:
        dist.send_object_list([mine, 3], dst=size - 1)
    got: list[Any] = [None, None]
    if rank == size - 1:
        dist.recv_object_list(got, src=0)
    return everyone, told, at_root, part, got


def functional() -> Any:
    import torch.distributed._functional_collectives as fc

    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    mine = torch.arange(2.0 * size, dtype=torch.float64) * (rank + 1)
    return [
        result.tolist()
        for result in (
            fc.all_reduce(mine, "sum", group),
            fc.all_gather_tensor(mine, 0, group),
            fc.reduce_scatter_tensor(mine, "sum", 0, group),
            fc.all_to_all_single(mine, None, None, group),
            fc.broadcast(mine, 1, group),
            *fc.all_reduce_coalesced([mine, mine * 2], "max", group),
            *fc.all_gather_into_tensor_coalesced([mine, mine * 2], group),
            *fc.reduce_scatter_tensor_coalesced([mine, mine * 2], "sum", [0, 0], group),
        )
    ]


def through_autograd() -> Any:
    """torch.distributed.nn: collectives that autograd goes through."""
    import torch.distributed.nn.functional as dnn

    x = torch.arange(6.0, dtype=torch.float64).mul(dist.get_rank() + 1).requires_grad_()
    total = dnn.all_reduce(x * 2, group=dist.group.WORLD)
    gathered = torch.cat(list(dnn.all_gather(x, group=dist.group.WORLD)))
    ((total**2).sum() + (gathered**3).sum()).backward()
    return total.tolist(), gathered.tolist(), x.grad.tolist()


ENGINES: dict[str, Callable[..., Any]] = {
    "ddp": ddp,
    "ddp, buffers and unused parameters": ddp_with_buffers_and_unused,
    "ddp, join": ddp_join,
    "ddp, comm hook": ddp_comm_hook,
    "replicate": replicate,
    "fully_shard": fully_shard,
    "tensor parallel": tensor_parallel,
    "dtensor": dtensor,
    "mesh": mesh_of_two_dimensions,
    "pipeline GPipe": gpipe,
    "pipeline 1F1B": one_forward_one_backward,
    "checkpoint": checkpoint,
    "objects": objects,
    "functional": functional,
    "distributed.nn": through_autograd,
}


def run_all(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results by engine, over mpi and over gloo."""
    warnings.simplefilter("ignore")
    over_mpi = run_each(f"{folder}/mpi")
    comm.leave()
    comm.join(MPI.COMM_WORLD, "gloo")
    return over_mpi, run_each(f"{folder}/gloo")


def run_each(folder: str) -> dict[str, Any]:
    return {name: engine(folder) if name == "checkpoint" else engine() for name, engine in ENGINES.items()}
