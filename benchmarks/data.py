"""A training step under `%%parallel data` against one process and against a hand-written DDP script over gloo."""

from __future__ import annotations

import functools
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Row
from benchmarks.sides import on_two_sides, rest

ROUNDS = int(os.environ.get("NBPAR_BENCH_ROUNDS", "7"))
WARM = 10  # steps of each way before the first round: checks and measurements of the mode are over by then

GPT = """
class Layer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ln1, self.ln2, self.heads = nn.LayerNorm(d), nn.LayerNorm(d), heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(self.ln1(x)).chunk(3, dim=-1))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(h.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.ln2(x))

class GPT(nn.Module):
    def __init__(self, vocabulary, d, heads, layers, length):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.layers = nn.ModuleList(Layer(d, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.ln(x))
"""
CNN = """
def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
model = nn.Sequential(
    block(3, 32), block(32, 64), nn.MaxPool2d(2), block(64, 64), block(64, 64),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)
x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
"""
OPTIONS: dict[str, dict[str, object]] = {"ours": {}, "local": {"local_batchnorm": True}}  # of the ways through the mode
SCRIPTS = ("gloo", "exact", "meets")  # of the ways, those of DistributedDataParallel
LANGUAGE = "x = torch.randint(0, {v}, ({b}, {t}))\ny = torch.randint(0, {v}, ({b}, {t}))\n"
LOSS = "F.cross_entropy(model(x), y)"
LANGUAGE_LOSS = "(lambda logits: F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1)))(model(x))"


@dataclass(frozen=True)
class Workload:
    """setup makes model, x and y, with y.shape[0] rows; loss is an expression. steps: in one round.

    batchnorm: measured with the statistics of each rank's rows too, which is what the DDP script does; and against scripts with
    those of the whole batch, which is what one process has, and with nothing but the two meetings of ranks a layer that these take.
    """

    name: str
    setup: str
    loss: str
    steps: int
    against_gloo: bool = True
    one: str = "≥ 1×"
    batchnorm: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        return ("one", "ours", *(["local", "exact", "meets"] if self.batchnorm else []), "gloo")


def gpt(name: str, v: int, d: int, heads: int, layers: int, b: int, t: int, steps: int) -> Workload:  # noqa: PLR0917
    model = f"model = GPT({v}, {d}, {heads}, {layers}, {t})\n"
    return Workload(name, GPT + model + LANGUAGE.format(v=v, b=b, t=t), LANGUAGE_LOSS, steps)


WORKLOADS = (
    Workload(
        "MLP, 8 MiB of gradients",
        "model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512))\n"
        "x, y = torch.randn(256, 512), torch.randint(0, 512, (256,))\n",
        LOSS,
        10,
    ),
    Workload("CNN, 64 images of 32×32", CNN, LOSS, 4, one="≥ 1.6×", batchnorm=True),
    gpt("GPT, 0.8 M parameters", 65, 128, 4, 4, 16, 64, 8),
    gpt("GPT, 10 M parameters", 65, 384, 6, 6, 8, 64, 2),
    gpt("GPT, vocabulary of 8,000", 8000, 128, 4, 2, 16, 64, 4),
    Workload(
        "tiny RNN",
        """
class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

model = Tiny()
x, y = torch.randn(16, 10, 8), torch.randint(0, 4, (16,))
""",
        LOSS,
        100,
        against_gloo=False,
    ),
)


def rows() -> list[Row]:
    """All workloads, in one launch of ranks."""
    nbpar, peers = on_two_sides(measure, list(WORKLOADS), timeout=500)
    table = []
    for workload, ours, theirs in zip(WORKLOADS, nbpar, peers, strict=True):
        print(f"{workload.name}: {ours['details']}", file=sys.stderr)
        table.append(Row(workload.name, ours["ours"], "one process", theirs["one"], "ms", workload.one))
        table.append(
            Row(workload.name, ours["ours"], "DDP over gloo", theirs["gloo"], "ms", "≥ 1×" if workload.against_gloo else "")
        )
        if workload.batchnorm:
            table.append(Row(f"{workload.name}, --local-batchnorm", ours["local"], "DDP over gloo", theirs["gloo"], "ms"))
            for way, what in (("exact", "statistics of the whole batch"), ("meets", "ranks meet at each statistic")):
                table.append(Row(workload.name, ours["ours"], f"DDP over gloo, {what}", theirs[way], "ms"))
    return table


def measure(ours: bool, gloo: Any, workloads: list[Workload]) -> list[dict[str, Any]]:
    """On every rank: ms a step of each workload, by the ways of its side. One process is rank 0 alone; the others wait."""
    import torch.distributed as dist

    from nbpar.parallel import mode

    rank, results = dist.get_rank(), []
    for workload in workloads:
        here = [way for way in workload.ways if (way in OPTIONS) == ours]
        namespaces = {way: prepared(workload, gloo if way in SCRIPTS else None, BATCHNORM.get(way)) for way in here}
        step = compile(f"opt.zero_grad()\nloss = {workload.loss}\nloss.backward()\nopt.step()\n", workload.name, "exec")
        figures: dict[str, Any] = {way: [] for way in namespaces}

        def timed(way: str, steps: int, step: Any = step, namespaces: Any = namespaces) -> float:
            repeat(step, 1 + steps // 3, namespaces[way])  # not a cell's first call, nor with cold caches
            began = time.perf_counter()
            repeat(step, steps, namespaces[way])
            return time.perf_counter() - began

        def run(way: str, steps: int, namespaces: Any = namespaces, figures: Any = figures, timed: Any = timed) -> float:
            rest()
            if way not in namespaces:
                return 0.0
            if way not in OPTIONS:
                return timed(way, steps) if way in SCRIPTS or rank == 0 else 0.0
            with mode("data", OPTIONS[way], namespaces[way]) as report:
                seconds = timed(way, steps)
            if way == "ours":
                figures["details"] = report.lines, report.details
            return seconds

        for way in workload.ways:
            run(way, max(WARM, 3 * workload.steps) if way in OPTIONS else 2)
        for _ in range(ROUNDS):
            for way in workload.ways:
                seconds = run(way, workload.steps)
                if way in figures:
                    figures[way].append(seconds / workload.steps * 1e3)
        results.append(figures)
    return results


def repeat(step: Any, times: int, namespace: dict[str, Any]) -> None:
    for _ in range(times):
        exec(step, namespace)


def prepared(workload: Workload, group: Any, batchnorm: Any = None) -> dict[str, Any]:
    """The names of a step. group: for a DDP script, which takes this rank's rows and wraps its model. batchnorm: forward(layer,
    group, x) of its BatchNorm, if not torch's."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(workload.setup, names)
    if batchnorm is not None:
        for layer in names["model"].modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.forward = functools.partial(batchnorm, layer, group)  # type: ignore[method-assign]
    if group is not None:
        for name in ("x", "y"):
            names[name] = names[name].chunk(dist.get_world_size())[dist.get_rank()].contiguous()
        names["model"] = DistributedDataParallel(names["model"], process_group=group)
    names["opt"] = torch.optim.SGD(names["model"].parameters(), lr=0.01, momentum=0.9)
    return names


def of_whole_batch(layer: Any, group: Any, x: Any) -> Any:
    """BatchNorm2d as a script has it that wants one process's result: sums and squares over all ranks, one exchange each way."""
    import torch
    from torch.distributed.nn.functional import all_reduce

    sums = all_reduce(torch.cat([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3))]), group=group)
    count = x.numel() // x.shape[1] * group.size()
    mean, square = (sums / count).chunk(2)
    var = square - mean * mean
    with torch.no_grad():
        layer.num_batches_tracked.add_(1)
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(var * count / (count - 1), layer.momentum)
    scale = layer.weight * (var + layer.eps).rsqrt()
    return torch.addcmul((layer.bias - mean * scale)[:, None, None], x, scale[:, None, None])


def ranks_meet(layer: Any, group: Any, x: Any) -> Any:
    """BatchNorm2d over each rank's own rows; only, no rank goes on before all have come here, forward and backward."""
    import torch
    import torch.distributed as dist

    class Meet(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            dist.all_reduce(torch.zeros(1))
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            dist.all_reduce(torch.zeros(1))
            return grad

    return type(layer).forward(layer, Meet.apply(x))


BATCHNORM = {"exact": of_whole_batch, "meets": ranks_meet}  # of scripts
