"""Run cells one way and the other, and find the largest difference in everything that they leave behind."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import random
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbpar.parallel import mode
from nbpar.parallel.data.batch import Binder
from tests.data import styles
from tests.data.zoo import CELLS, Cell


@dataclass
class Outcome:
    """What a rank found. largest: difference, at: where; error: a traceback."""

    largest: float = 0.0
    at: str = ""
    lines: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    printed: tuple[str, str] = ("", "")


def left(namespace: dict[str, Any], ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every number that a cell left: weights, gradients, buffers, optimiser state, losses, and random states."""
    found: dict[str, Any] = {}
    for name, value in namespace.items():
        if not name.startswith("_") and name not in ignore:
            found.update(numbers(name, value))
    found["torch's random state"] = torch.get_rng_state().clone()
    found["numpy's random state"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    found["python's random state"] = torch.tensor(random.getstate()[1])
    return found


def numbers(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield name, value.detach().clone()
        if value.is_leaf and value.grad is not None:
            yield name + ".grad", value.grad.detach().clone()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield name, torch.from_numpy(value.copy())
    elif isinstance(value, bool | int | float | str | None):
        yield name, value
    elif isinstance(value, nn.Module):
        for key, tensor in [*value.named_parameters(), *value.named_buffers()]:
            yield from numbers(f"{name}.{key}", tensor)
            if isinstance(tensor, nn.Parameter) and tensor.grad is None:
                yield f"{name}.{key}.grad", None
        for path, module in value.named_modules():
            for key, attribute in module.__dict__.items():
                if not key.startswith("_") and depth < 4:
                    yield from numbers(f"{name}.{path}:{key}", attribute, depth + 1)
    elif isinstance(value, torch.optim.Optimizer):
        yield from numbers(name, value.state_dict(), depth + 1)
    elif isinstance(value, dict) and depth < 6:
        for key, item in value.items():
            yield from numbers(f"{name}[{key!r}]", item, depth + 1)
    elif isinstance(value, list | tuple) and depth < 6:
        for at, item in enumerate(value):
            yield from numbers(f"{name}[{at}]", item, depth + 1)


def difference(a: Any, b: Any) -> float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.layout != torch.strided:
            return difference(a.to_dense(), b.to_dense())
        if a.numel() == 0:
            return 0.0
        gap = (a.double() - b.double()).abs()
        gap[a == b] = 0.0
        return float("inf") if gap.isnan().any() and not torch.equal(a.isnan(), b.isnan()) else float(gap.nan_to_num(0.0).max())
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if math.isnan(a) and math.isnan(b) else abs(a - b)
    return 0.0 if a == b else float("inf")


def compare(one: dict[str, Any], many: dict[str, Any]) -> tuple[float, str]:
    if one.keys() != many.keys():
        return float("inf"), f"names differ: {sorted(one.keys() ^ many.keys())[:5]}"
    worst = max(one, key=lambda name: difference(one[name], many[name]))
    return difference(one[worst], many[worst]), worst


def execute(text: str, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<cell>", "exec"), namespace)
    return printed.getvalue()


def run(cell: Cell) -> Outcome:
    """The cell in this process alone, then under mode data on all ranks."""
    outcome = Outcome()
    home, dtype = os.getcwd(), torch.get_default_dtype()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            alone: dict[str, Any] = {"__name__": "__main__"}
            execute(cell.first, alone)
            printed = execute(cell.train, alone)
            one = left(alone, cell.ignore)
            together: dict[str, Any] = {"__name__": "__main__"}
            execute(cell.first, together)
            train = cell.train
            if cell.options.get("batch"):  # which the shell of a rank does itself
                train = ast.unparse(Binder(cell.options["batch"]).visit(ast.parse(train)))
            with mode("data", cell.options, together) as report:
                outcome.printed = printed, execute(train, together)
            outcome.largest, outcome.at = compare(one, left(together, cell.ignore))
            outcome.lines, outcome.details = report.lines, report.details
        except BaseException:
            outcome.error = traceback.format_exc()
        finally:
            os.chdir(home)
            torch.set_default_dtype(dtype)
    return outcome


assert styles  # adds its cells to the zoo


def run_all(names: list[str]) -> dict[str, Outcome]:
    """On a rank: every named cell, each whatever became of the others."""
    return {name: run(CELLS[name]) for name in names}
