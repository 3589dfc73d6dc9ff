"""Independent branches on different ranks run at the same time, in whichever order they are written.

Nothing is timed. Every rank notes what it does: layers that it runs, messages that it sends and waits for. The notes are then
played on a clock of their own, on which a layer takes 1 forwards and 2 backwards, all else nothing: so a step takes as long as
its longest chain of layers and waits.
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from nbpar.parallel.model.channel import Channel
from nbpar.parallel.model.mode import mode
from tests.model.programs import notebook
from tests.ranks import run_ranks

Event = tuple[Literal["run", "send", "take", "told"], int]  # layers' time, or the other rank

events: list[Event] = []

SETUP = """
def deep(): return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh())])
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(6, 6), deep(), deep(), nn.Linear(6, 6)
    def forward(self, x):
        h = self.first(x)
        {body}
class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 3), nn.ModuleList(deep() for _ in range(3))
    def forward(self, x):
        share = self.gate(x).softmax(-1)
        return sum(share[:, i:i + 1] * expert(x) for i, expert in enumerate(self.experts))
torch.manual_seed(0)
x, z = torch.randn(4, 6), torch.randn(4, 6)
{made}
opt = torch.optim.SGD([p for part in list(globals().values()) if isinstance(part, nn.Module) for p in part.parameters()], lr=0.1)
losses = []
def result():
    {result}
"""
CELL = """
for _ in range(3):
    begin()
    opt.zero_grad()
    loss = result().pow(2).mean()
    loss.backward()
    opt.step()
    losses.append(loss.item())
"""
EVALUATED = """
with torch.{how}():
    for _ in range(3):
        begin()
        losses.append(result().sum().item())
"""
TWO = "first=0,a=0,b=1,last=0"
APART = "first, a, b, last = nn.Linear(6, 6), deep(), deep(), nn.Linear(6, 6)"
MEMBERS = "members = nn.ModuleList(deep() for _ in range(3))"
ORDERS = {
    "a + b": "return self.last(self.a(h) + self.b(h))",
    "b + a": "return self.last(self.b(h) + self.a(h))",
    "b, then a": "late = self.b(h); return self.last(self.a(h) + late)",
    "h changed in place": "F.relu(h, inplace=True); return self.last(self.a(h) + self.b(h))",
}


def two(body: str, place: str, cell: str = CELL) -> tuple[str, str, str]:
    return SETUP.format(body=body, made="net = Two()", result="return net(x)"), cell, place


def loose(made: str, result: str, place: str) -> tuple[str, str, str]:
    return SETUP.format(body="", made=made, result=result), CELL, place


# By name: setup, cell, place, the shortest time that is possible
CASES: dict[str, tuple[tuple[str, str, str], int]] = {
    **{f"{order}, on 0 and 1": (two(body, TWO), 18) for order, body in ORDERS.items()},
    **{f"{order}, on 1 and 0": (two(body, "first=0,a=1,b=0,last=0"), 18) for order, body in ORDERS.items()},
    **{f"{order}, joined on 2": (two(body, "first=2,a=0,b=1,last=2"), 18) for order, body in ORDERS.items()},
    **{f"a + b, {how}": (two(ORDERS["a + b"], TWO, EVALUATED.format(how=how)), 6) for how in ("no_grad", "inference_mode")},
    "h changed after it was sent": (
        two(
            "late = self.b(h); h = F.relu(h, inplace=True); return self.last(self.a(h) + self.b(h) + late)",
            TWO,
            EVALUATED.format(how="no_grad"),
        ),
        10,
    ),
    "models of their own": (loose(APART, "h = first(x); return last(a(h) + b(h))", TWO), 18),
    "a function in between": (loose(APART, "h = torch.tanh(first(x)); return last(a(h) + b(h))", TWO), 18),
    "an ensemble on 3 ranks": (loose(MEMBERS, "return sum(m(x) for m in members) / 3", "0=0,1=1,2=2"), 12),
    "an ensemble on 2 ranks": (loose(MEMBERS, "return sum(m(x) for m in members) / 3", "0=0,1=1,2=0"), 24),
    "experts on 3 ranks": (loose("net = Experts()", "return net(x)", "gate=0,experts.0=0,experts.1=1,experts.2=2"), 15),
    "experts, the gate's last": (loose("net = Experts()", "return net(x)", "gate=0,experts.0=1,experts.1=2,experts.2=0"), 15),
    "two towers": (loose("left, right = deep(), deep()", "return left(x) * right(z)", "left=0,right=1"), 12),
    "two towers, the other way": (loose("left, right = deep(), deep()", "return right(z) * left(x)", "left=0,right=1"), 12),
}


class Layer(Function):
    """Notes when it runs, both ways."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        if not value.is_meta:
            events.append(("run", 1))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if not grad.is_meta:
            events.append(("run", 2))
        return grad


def linear(self: nn.Linear, input: Tensor) -> Tensor:
    return Layer.apply(F.linear(input, self.weight, self.bias))  # type: ignore[no-any-return]


def noted() -> None:
    """From now on this rank notes what it does."""
    send, expect, broadcast, tell = Channel.send, Channel.expect, Channel.broadcast, Channel.tell

    def sends(self: Channel, value: Tensor, to: int) -> None:
        send(self, value, to)
        events.append(("send", to))

    def expects(self: Channel, like: Tensor, source: int) -> Callable[[], Tensor]:
        take = expect(self, like, source)

        def takes() -> Tensor:
            events.append(("take", source))
            return take()

        return takes

    def told(original: Any) -> Any:
        def tells(self: Channel, thing: Any, source: int) -> Any:
            events.append(("told", source))
            return original(self, thing, source)

        return tells

    nn.Linear.forward = linear  # type: ignore[method-assign]
    Channel.send, Channel.expect = sends, expects  # type: ignore[method-assign]
    Channel.broadcast, Channel.tell = told(broadcast), told(tell)  # type: ignore[method-assign]


def everything() -> dict[str, tuple[list[Event], bool, dict[str, str]]]:
    """By case: the events of the last step on this rank, whether losses are those of one process, what ran in pieces."""
    torch.set_default_dtype(torch.float64)
    noted()
    outcome = {}
    for name, ((setup, cell, place), _) in CASES.items():
        plain, names = notebook(setup), notebook(setup)
        for here in (plain, names):
            here["begin"] = events.clear
        exec(cell, plain)
        with mode({"place": dict(part.split("=") for part in place.split(","))}, names) as report:
            exec(cell, names)
            seen = list(events)
        same = torch.allclose(torch.tensor(plain["losses"]), torch.tensor(names["losses"]), rtol=1e-13)
        outcome[name] = seen, same, report.details["by_operation"]
    return outcome


def clock(ranks: list[list[Event]]) -> int:
    """When the last of them is done."""
    todo = [deque(events) for events in ranks]
    now = [0] * len(ranks)
    under_way: defaultdict[tuple[str, int, int], deque[int]] = defaultdict(deque)  # what, from, to: when each was sent
    while any(todo):
        ready = [
            rank for rank, rest in enumerate(todo) if rest and (_sends(rest[0], rank) or under_way[rest[0][0], rest[0][1], rank])
        ]
        assert ready, "they wait for each other"
        rank = ready[0]
        kind, what = todo[rank].popleft()
        if kind == "run":
            now[rank] += what
        elif kind == "send":
            under_way["take", rank, what].append(now[rank])
        elif what == rank:
            for other in range(len(ranks)):
                under_way[kind, rank, other].append(now[rank])
        else:
            now[rank] = max(now[rank], under_way[kind, what, rank].popleft())
    return max(now)


def _sends(event: Event, rank: int) -> bool:
    """Whether it needs nothing of another rank."""
    kind, what = event
    return kind in ("run", "send") or (kind == "told" and what == rank)


@functools.cache
def results() -> list[dict[str, tuple[list[Event], bool, dict[str, str]]]]:
    return run_ranks(3, everything)


@pytest.mark.parametrize("name", CASES)
def test_branches_run_at_the_same_time(name: str) -> None:
    played = [result[name] for result in results()]
    assert [(same, pieces) for _, same, pieces in played] == [(True, {})] * 3
    assert clock([seen for seen, _, _ in played]) == CASES[name][1]


def test_the_clock_waits_for_messages() -> None:
    work: Event = ("run", 4)
    assert clock([[work, ("send", 1)], [("take", 0), work]]) == 8
    assert clock([[("send", 1), work], [work, ("take", 0)]]) == 4
    assert clock([[work, ("told", 0), work], [("told", 0), work], [work, work]]) == 8
