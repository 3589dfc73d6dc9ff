"""Programs that tests run on ranks, beside the equality cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbpar.errors import Unsupported
from nbpar.parallel.model import mode

from .harness import Bell, notebook
from .zoo import GPT

TWO_STEPS = """
for _ in range(2):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
"""


def gpt(width: int, layers: int, words: int) -> str:
    """A GPT of that size with AdamW, as a notebook."""
    model = f"model = GPT(V={words}, d={width}, h=4, L={layers}, T=12)"
    text = GPT.replace("model = GPT()", model).replace("reshape(-1, 40)", f"reshape(-1, {words})")
    return text + "opt = torch.optim.AdamW(model.parameters())\n"


def bytes_held(width: int, layers: int, words: int) -> tuple[int, int]:
    """Bytes of parameters, gradients and optimiser state on this rank after two steps, and of one process."""
    names = notebook(gpt(width, layers, words))
    with mode({}, names):
        exec(TWO_STEPS, names)
        with torch._C.DisableTorchFunction():
            held = _bytes(names, lambda value: not value.is_meta)
            whole = _bytes(names, lambda value: True)
    return held, whole


def _bytes(names: dict[str, Any], counts: Any) -> int:
    values: list[Tensor] = list(names["model"].parameters())
    values += [value.grad for value in values if value.grad is not None]
    values += [v for state in names["opt"].state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(value.numel() * value.element_size() for value in values if counts(value))


def run_cell(setup: str, cell: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a cell printed, its lines and details, or the words with which it was refused."""
    names = notebook(setup)
    try:
        with Bell() as bell, mode({"failed": bell.ring, **options}, names) as report:
            exec(compile(cell, "<cell>", "exec"), names)
    except Unsupported as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    plain = (int, float, str, list, tuple, dict, bool)
    kept = {name: value for name, value in names.items() if isinstance(value, plain) and not name.startswith("__")}
    return {"lines": report.lines, "details": report.details, "names": kept}


