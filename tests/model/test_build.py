"""Models made inside a cell: made in pieces, with the values and random states of one process."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn

from nbpar.parallel.model import build
from nbpar.parallel.model.mode import mode
from tests.cells import Cell
from tests.equal import Outcome, compare
from tests.model.programs import notebook
from tests.ranks import run_ranks

CLASSES = """
class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.scale = nn.Parameter(torch.full((d,), 0.1))
    def forward(self, x):
        return x + self.scale * self.b(torch.relu(self.a(self.norm(x))))

class Tall(nn.Module):
    def __init__(self, words, d, layers):
        super().__init__()
        self.words, self.place = nn.Embedding(words, d), nn.Parameter(torch.randn(8, d) * 0.02)
        self.blocks = nn.Sequential(*[Block(d) for _ in range(layers)])
        self.head = nn.Linear(d, words, bias=False)
        self.head.weight = self.words.weight
        self.apply(self.begin)
        for name, value in self.named_parameters():
            if name.endswith("b.weight"):
                nn.init.normal_(value, std=0.02 / (2 * layers) ** 0.5)
        with torch.no_grad():
            for value in self.blocks[-1].parameters():
                value.mul_(0.5)
        self.blocks[0].a.weight.data.uniform_(-0.1, 0.1)
    def begin(self, part):
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
        elif isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02)
    def forward(self, i):
        return self.head(self.blocks(self.words(i) + self.place))
"""
TRAIN = """
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(2):
    opt.zero_grad()
    out = model(i)
    loss = F.cross_entropy(out.flatten(0, 1), i.flatten())
    loss.backward()
    opt.step()
    print(f"{loss.item():.10f}")
"""
CASES = {
    "tied weights, raw parameters, values set again": (
        CLASSES + "i = torch.randint(0, 40, (4, 8))",
        "model = Tall(40, 16, 6)\n" + TRAIN,
    ),
    "class of the cell, dtype, loaded": (
        "i = torch.randint(0, 40, (4, 8))",
        CLASSES + "model = Tall(40, 16, 3).to(torch.float64)\nmodel.load_state_dict(Tall(40, 16, 3).state_dict())\n" + TRAIN,
    ),
    "never called": ("", "model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))\nprint(model[0].weight.sum().item())"),
    "recurrent, attention, convolution": (
        "x = torch.randn(4, 3, 8)",
        """
conv, lstm = nn.Conv1d(3, 6, 3, padding=1), nn.LSTM(8, 8, 2)
attention = nn.MultiheadAttention(8, 2, batch_first=True)
h = lstm(conv(x))[0]
loss = attention(h, h, h)[0].pow(2).sum()
loss.backward()
print(loss.item())
""",
    ),
    "sparse gradients": (
        "i = torch.randint(0, 9, (4, 3))",
        "e, l = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2)\nloss = l(e(i)).sum()\nloss.backward()\nprint(loss.item())",
    ),
    "weight norm": (
        "x = torch.randn(4, 6)",
        "m = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 2))\n"
        "loss = m(x).sum()\nloss.backward()",
    ),
    "an average of the weights": (
        "x = torch.randn(4, 6)\nimport copy",
        """
m = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
average = copy.deepcopy(m)
opt = torch.optim.SGD(m.parameters(), lr=0.1)
for _ in range(2):
    m(x).pow(2).sum().backward(); opt.step(); opt.zero_grad()
    with torch.no_grad():
        for a, b in zip(average.parameters(), m.parameters()):
            a.lerp_(b, 0.1)
print(average(x).sum().item())
""",
    ),
}


def cases() -> dict[str, Outcome]:
    return {name: compare(Cell(name, setup, cell), "model", {"build": 0}) for name, (setup, cell) in CASES.items()}


def test_values_and_random_states_are_those_of_one_process() -> None:
    for outcome in run_ranks(2, cases):
        for name, case in outcome.items():
            assert case.equal(1e-13), (name, case)


def peak() -> dict[str, Any]:
    """Bytes of parameters on this rank: the most while the model is made and first called, at the end, and of the model."""
    names = notebook(CLASSES + "i = torch.randint(0, 64, (4, 8))")
    most = 0
    made = build.Build._made

    def held() -> int:
        storages = {v.untyped_storage()._cdata: v.untyped_storage().nbytes() for v in gc.get_objects() if _real(v)}
        return sum(storages.values())

    def look(self: Any, module: nn.Module) -> None:
        nonlocal most
        with torch._C.DisableTorchFunction():
            most = max(most, held())
        made(self, module)

    build.Build._made = look
    try:
        with mode({"build": 0, "keep": "model"}, names):
            exec("model = Tall(64, 32, 8)", names)
            build.Build._made = made
            exec(TRAIN, names)
            with torch._C.DisableTorchFunction():
                whole = sum(v.nbytes for v in names["model"].parameters())
                end = sum(v.nbytes for v in names["model"].parameters() if not v.is_meta)
    finally:
        build.Build._made = made
    return {"most": most, "end": end, "whole": whole}


def _real(thing: object) -> bool:
    return isinstance(thing, nn.Parameter) and not thing.is_meta


def test_no_rank_ever_holds_the_whole_model() -> None:
    for ranks in (2, 3):
        found = run_ranks(ranks, peak)
        whole = found[0]["whole"]
        largest = 2 * 4 * 32 * 32 * 4  # a block's two matrices
        for rank in found:
            assert rank["most"] <= whole / ranks + 2 * largest, found
            assert rank["end"] <= 1.2 * whole / ranks, found


def test_tensors_of_different_ranks_change_places_one_by_one() -> None:
    (held,) = run_ranks(2, exchange)[:1]
    assert max(held) <= 5 * 400


def exchange() -> list[int]:
    """Eight tensors of 400 bytes, alternately here and there, move so that each rank has a half of the row."""
    import torch.distributed as dist

    from nbpar.parallel.model import channel, place
    from nbpar.parallel.model.home import owner

    link = channel.Channel()
    channel.connect(link)
    values = [torch.full((100,), float(k)) for k in range(8)]
    for k, value in enumerate(values):
        place.put(value, k % 2, again=False)
    held: list[int] = []
    one = place._move

    def look(value: Tensor, source: int, to: int) -> None:
        one(value, source, to)
        held.append(sum(v.nbytes for v in values if owner(v) == link.rank))

    place._move = look
    try:
        place.move((value, k // 4) for k, value in enumerate(values))
    finally:
        place._move = one
    assert all(value.is_meta or (value == k).all() for k, value in enumerate(values))
    assert [owner(value) for value in values] == [0] * 4 + [1] * 4
    channel.connect(None)
    dist.barrier()
    return held
