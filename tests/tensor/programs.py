"""Programs that tests run on ranks, beside the equality cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbpar.errors import OptionError
from nbpar.parallel.model.mode import mode
from nbpar.parallel.tensor.sharded import Sharded
from tests.model.programs import TWO_STEPS, gpt, notebook, plain
from tests.model.zoo import MLP, SGD


def bytes_of(value: Tensor) -> tuple[int, int]:
    """What this rank holds, and what one process would."""
    here = value
    if isinstance(value, Sharded):
        here = value._shards.data
        assert value._shards.whole is None
    return here.nbytes, value.numel() * value.element_size()


def bytes_held(width: int, layers: int, words: int) -> dict[str, tuple[int, int]]:
    """Bytes of parameters, gradients and optimiser state of a GPT after two steps, on this rank and in one process."""
    names = notebook("".join(gpt(width, layers, words)))
    with mode({"how": "tensor"}, names):
        exec(TWO_STEPS, names)
        weights = list(names["model"].parameters())
        kinds = {
            "weights": weights,
            "gradients": [value.grad for value in weights],
            "state": [v for state in names["opt"].state.values() for v in state.values() if isinstance(v, Tensor)],
        }
        pairs = {kind: [bytes_of(value) for value in values] for kind, values in kinds.items()}
    return {kind: (sum(here for here, _ in both), sum(whole for _, whole in both)) for kind, both in pairs.items()}


def split(setup: str, cell: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """How a cell was split, and what it said."""
    names = notebook(setup)
    try:
        with mode({"how": "tensor", **(options or {})}, names) as report:
            exec(cell, names)
    except OptionError as error:
        return {"error": str(error)}
    return {"split": report.details["split"], "lines": report.lines, "details": report.details}


STEP = "loss = model(x).pow(2).mean(); loss.backward()"
PAIRS = """
class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 7), nn.Linear(7, 10)
    def forward(self, x):
        h = F.dropout(F.gelu(self.a(x)), 0.1)
        x = self.b(h * 2)
        h = self.c(x)
        return self.d(h.softmax(-1))
model, x = Pairs(), torch.randn(5, 6)
"""


def home() -> dict[str, bool]:
    """What a cell leaves: the notebook's own objects, in their own memory, with what they shared."""
    setup = MLP + SGD
    cell = "state = model.state_dict(); first = model[0].weight.data[0]\n" + TWO_STEPS
    expected, _ = plain(setup, cell)
    names = notebook(setup)
    weight = names["model"][0].weight
    memory = weight.untyped_storage()
    with mode({"how": "tensor"}, names):
        exec(cell, names)
        inside = type(weight) is Sharded and isinstance(weight, torch.nn.Parameter)
    pairs = list(zip(expected["model"].parameters(), names["model"].parameters(), strict=True))
    momentum = [opt.state[p]["momentum_buffer"] for opt, p in ((n["opt"], n["model"][0].weight) for n in (expected, names))]
    same = all(torch.allclose(a, b, atol=1e-6) and torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in pairs)
    with torch.no_grad():
        weight[0, 0] = 7.0
    return {
        "sharded inside": inside,
        "same object": names["model"][0].weight is weight and type(weight) is torch.nn.Parameter,
        "same memory": weight.untyped_storage() is memory and memory.nbytes() == weight.nbytes,
        "same values": same,
        "same state": torch.allclose(*momentum, atol=1e-6),
        "views are views": float(names["state"]["0.weight"][0, 0]) == 7.0 == float(names["first"][0]),
        "no attributes left": not any(name.startswith("_") for name in weight.__dict__),
    }


def everything() -> dict[str, Any]:
    return {
        "uneven": split("model, x = nn.Linear(6, 10), torch.randn(5, 6)", STEP),
        "pairs": split(PAIRS, STEP + "\n" + STEP),
        "few columns": split("model, x = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 1)), torch.randn(5, 6)", "model(x)"),
        "shared memory": split("model = nn.Linear(6, 6); row = model.weight.data[0]; x = torch.randn(5, 6)", STEP),
        "groups": split("model, x = nn.Conv2d(4, 4, 3, groups=4), torch.randn(2, 4, 5, 5)", STEP),
        "option": split(PAIRS, STEP, {"micro": "4"}),
        "home": home(),
    }
