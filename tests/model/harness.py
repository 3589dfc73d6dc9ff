"""Run a cell's text plainly and under the mode, on every rank, and say how far the two are apart."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nbpar import comm
from nbpar.errors import Unsupported
from nbpar.parallel.model import mode
from nbpar.parallel.model.session import random_digest

from .zoo import IMPORTS


@dataclass
class Outcome:
    """How one cell went under the mode on one rank, beside the plain run on that rank."""

    difference: float = float("inf")
    text: bool = False
    random: bool = False
    keys: bool = False
    refused: str = ""
    error: str = ""
    worst: str = ""
    lines: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    shown: str = ""

    def equal(self, tolerance: float) -> bool:
        return not self.error and self.text and self.random and self.keys and self.difference <= tolerance


def plain(setup: str, cell: str) -> tuple[dict[str, Any], str]:
    names = notebook(setup)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(cell, "<cell>", "exec"), names)
    return names, out.getvalue()


def notebook(setup: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    exec(compile(IMPORTS + setup, "<notebook>", "exec"), names)
    return names


def compare(setup: str, cell: str, options: dict[str, Any]) -> Outcome:
    """The plain run is made on every rank, so that each compares its own. Float64 throughout."""
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore")
    outcome = Outcome()
    expected, text = plain(setup, cell)
    facts = {name: value.detach().clone() for name, value in tensors(expected).items()}
    stream = random_digest()
    names = notebook(setup)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), Bell() as bell, compared():
            with mode({"failed": bell.ring, **options}, names) as report:
                exec(compile(cell, "<cell>", "exec"), names)
    except Unsupported as error:
        outcome.refused = str(error)
        return outcome
    except BaseException as error:
        outcome.error = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return outcome
    outcome.random = random_digest() == stream
    outcome.shown, outcome.text = f"{text}---\n{out.getvalue()}", out.getvalue() == text
    got = tensors(names)
    outcome.keys = got.keys() == facts.keys()
    outcome.difference = 0.0
    for name in facts.keys() & got.keys():
        gap = distance(facts[name], got[name])
        if gap > outcome.difference:
            outcome.difference, outcome.worst = gap, name
    outcome.lines, outcome.details = report.lines, report.details
    return outcome


@contextlib.contextmanager
def compared() -> Iterator[None]:
    """As in a notebook's cell, ranks compare what they call."""
    comm.trace.start(lambda name: name == "<cell>")
    comm.watch(True)
    try:
        yield
    finally:
        comm.watch(False)


class Bell:
    """What the kernel does in a world: when some ranks fail and the others go on, it ends all waits.

    The ranks tell each other by files: `failed` as soon as a cell fails, `end` when a rank is out of the cell.
    """

    number = 0

    def __enter__(self) -> Bell:
        Bell.number += 1
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.stem = Path(tempfile.gettempdir(), f"nbpar-{os.getppid()}-{Bell.number}")
        self.done, self.stopped = threading.Event(), False
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self._write("end", "stopped" if self.stopped else "")
        while len(ends := self._all("end")) < self.size:
            time.sleep(0.01)
        if any(end.read_text() for end in ends):
            comm.renew()
        dist.barrier()
        for what in ("failed", "end"):
            self._file(what, self.rank).unlink(missing_ok=True)

    def ring(self, error: BaseException) -> None:
        comm.watch(False)
        self._write("failed", f"a rank failed: {error}")

    def _file(self, what: str, rank: int | str) -> Path:
        return self.stem.with_name(f"{self.stem.name}-{what}-{rank}")

    def _all(self, what: str) -> list[Path]:
        return list(self.stem.parent.glob(self._file(what, "*").name))

    def _write(self, what: str, text: str) -> None:
        made = self._file(f"new-{what}", self.rank)
        made.write_text(text)
        made.replace(self._file(what, self.rank))

    def _listen(self) -> None:
        since = 0.0
        while not self.done.wait(0.1):
            failed = self._all("failed")
            since = since + 0.1 if failed and (len(failed) < self.size or self._all("end")) else 0.0
            if since > 2:
                self.stopped = True
                comm.abort(failed[0].read_text())
                return


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    if b.is_meta or a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.is_sparse:
        a, b = a.to_dense(), b.to_dense()
    if not a.numel():
        return 0.0
    return (a.to(torch.float64) - b.to(torch.float64)).abs().max().item()


def tensors(names: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that modules, optimisers, numbers and tensors in the notebook hold, by a readable name."""
    found: dict[str, Tensor] = {}
    for name, value in names.items():
        if isinstance(value, nn.Module):
            for key, inner in (*value.named_parameters(), *value.named_buffers()):
                found[f"{name}.{key}"] = inner
                if inner.is_leaf and inner.grad is not None:
                    found[f"{name}.{key}.grad"] = inner.grad
        elif isinstance(value, torch.optim.Optimizer):
            for i, state in enumerate(value.state.values()):
                found.update({f"{name}[{i}].{key}": inner for key, inner in state.items() if isinstance(inner, Tensor)})
        elif isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            for i, inner in enumerate(value):
                if isinstance(inner, (Tensor, float)):
                    found[f"{name}[{i}]"] = torch.as_tensor(inner)
        elif isinstance(value, float):
            found[name] = torch.tensor(value)
    return found


def run_all(cases: dict[str, tuple[str, str]], options: dict[str, Any]) -> dict[str, Outcome]:
    """Every case, on every rank."""
    return {name: compare(setup, cell, options) for name, (setup, cell) in cases.items()}
