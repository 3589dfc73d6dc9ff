"""`dist.all_reduce` as the ranks have it, against torch's own, in every way it can be called."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.ranks import run_ranks


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def ways(rank: int) -> dict[str, Tensor]:
    """A result by way of calling."""
    found = {}
    own = torch.arange(6.0).reshape(2, 3) + rank
    for number, op in enumerate(
        (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT, dist.ReduceOp(dist.ReduceOp.SUM))
    ):
        found[f"operation {number}"] = own.clone()
        dist.all_reduce(found[f"operation {number}"], op)
    found["average"], found["strided"], found["whole"] = own.clone(), own.clone().t(), torch.tensor([rank + 3])
    dist.all_reduce(found["average"], op=dist.ReduceOp.AVG)
    dist.all_reduce(found["strided"])
    dist.all_reduce(found["whole"], group=dist.group.WORLD)
    found["complex"] = torch.complex(own, own + 1)
    dist.all_reduce(found["complex"])
    found["later"] = own.clone()
    work = dist.all_reduce(found["later"], async_op=True)
    work.wait()
    found["alone"] = own.clone()
    groups = [dist.new_group([each]) for each in range(dist.get_world_size())]
    dist.all_reduce(found["alone"], group=groups[rank])
    dist.all_reduce(torch.ones(3), group=groups[1 - rank])  # a warning: this rank is no member
    found["leaf"] = own.clone().requires_grad_()
    dist.all_reduce(found["leaf"])
    found["together"] = own.clone()
    with dist._coalescing_manager():
        dist.all_reduce(found["together"])
    return {name: tensor.detach() for name, tensor in found.items()}


def compare() -> tuple[bool, list[str], Tensor]:
    from nbpar.comm import shortcut

    assert dist.all_reduce is shortcut.all_reduce
    rank = dist.get_rank()
    ours = ways(rank)
    with Seen() as seen:
        dist.all_reduce(torch.ones(3))
    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)(torch.ones(3) + rank)
    shortcut.remove()
    torchs = ways(rank)
    shortcut.install()
    return all(torch.equal(ours[name], torchs[name]) for name in torchs), seen.names, compiled


def doubled(x: Tensor) -> Tensor:
    y = x * 1
    dist.all_reduce(y)
    return 2 * y


def test_every_way_of_calling_gives_what_torch_gives() -> None:
    for same, seen, compiled in run_ranks(2, compare):
        assert same and seen and compiled.tolist() == [6.0] * 3
