"""Run a cell's text plainly and under a mode, on every rank, and find the largest difference in everything that it leaves."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import random
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbpar import comm
from nbpar.errors import Unsupported
from nbpar.parallel import mode
from nbpar.parallel.data.batch import Binder
from nbpar.values.tensors import gradient_of
from tests.bell import Bell
from tests.cells import Cell

NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@dataclass
class Outcome:
    """What a rank found. difference: the largest, at: where; printed: plainly and under the mode; refused: in these words."""

    difference: float = float("inf")
    at: str = ""
    printed: tuple[str, str] = ("", "")
    refused: str = ""
    error: str = ""
    lines: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def equal(self, tolerance: float, rounded: bool = False) -> bool:
        """rounded: numbers that were printed may differ by as much."""
        text = alike(*self.printed, tolerance if rounded else 0.0)
        return not self.refused and not self.error and text and self.difference <= tolerance

    def __str__(self) -> str:
        if self.refused or self.error:
            return self.refused or self.error
        return f"{self.at} differs by {self.difference:.1e}; {self.lines}; printed {self.printed}"


def alike(one: str, many: str, tolerance: float) -> bool:
    """Whether two texts are the same but for their numbers' rounding."""
    numbers = zip(NUMBER.findall(one), NUMBER.findall(many), strict=False)
    same = all(abs(float(a) - float(b)) <= tolerance * max(1.0, abs(float(a))) for a, b in numbers)
    return one == many or (NUMBER.sub("#", one) == NUMBER.sub("#", many) and same)


def compare(cell: Cell, name: str, options: dict[str, Any]) -> Outcome:
    """Both runs are made on every rank, so that each compares its own. Only `data` and `hybrid` know a cell's own options."""
    if name in ("data", "hybrid"):
        options = {**options, **cell.options}
    home, dtype = os.getcwd(), torch.get_default_dtype()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            return _compare(cell, name, options)
        finally:
            os.chdir(home)
            torch.set_default_dtype(dtype)


def _compare(cell: Cell, name: str, options: dict[str, Any]) -> Outcome:
    alone = notebook(cell.first)
    printed = execute(cell.train, alone)
    expected = left(alone, cell.ignore)
    together = notebook(cell.first)
    train = cell.train
    if options.get("batch"):  # which the shell of a rank does itself
        train = ast.unparse(Binder(options["batch"]).visit(ast.parse(train)))
    try:
        with Bell() as bell, compared():
            asked = options if name == "data" else {"failed": bell.ring, **options}
            try:
                with mode(name, asked, together) as report:
                    text = execute(train, together)
            except BaseException as error:
                bell.ring(error)
                raise
    except Unsupported as error:
        return Outcome(refused=str(error))
    except BaseException as error:
        return Outcome(error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return Outcome(*largest(expected, left(together, cell.ignore)), (printed, text), "", "", report.lines, report.details)


def run_all(cells: dict[str, Cell], name: str, options: dict[str, Any]) -> dict[str, Outcome]:
    """On a rank: every cell, whatever became of the others."""
    return {key: compare(cell, name, options) for key, cell in cells.items()}


@contextlib.contextmanager
def compared() -> Iterator[None]:
    """As in a notebook's cell, ranks compare what they call."""
    comm.trace.start(lambda name: name == "<cell>")
    comm.watch(True)
    try:
        yield
    finally:
        comm.watch(False)


def notebook(first: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(first, "<notebook>", "exec"), names)
    return names


def execute(text: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, "<cell>", "exec"), names)
    return printed.getvalue()


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
        if (grad := gradient_of(value)) is not None:
            yield name + ".grad", grad.detach().clone()
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
        if a.shape != b.shape or a.dtype != b.dtype or b.is_meta:
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


def largest(one: dict[str, Any], many: dict[str, Any]) -> tuple[float, str]:
    """The largest difference, and where."""
    if one.keys() != many.keys():
        return float("inf"), f"names differ: {sorted(one.keys() ^ many.keys())[:5]}"
    worst = max(one, key=lambda name: difference(one[name], many[name]))
    return difference(one[worst], many[worst]), worst
