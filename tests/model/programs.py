"""Programs that tests run on ranks, beside the equality cases."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbpar import parallel
from nbpar.errors import Unsupported
from nbpar.parallel.model.mode import mode
from nbpar.parallel.report import Report
from tests.bell import Bell

from .zoo import GPT, IMPORTS, MLP, SGD, TRAIN

TWO_STEPS = """
for _ in range(2):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
"""


def notebook(setup: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(IMPORTS + setup, "<notebook>", "exec"), names)
    return names


def plain(setup: str, cell: str) -> tuple[dict[str, Any], str]:
    """What a cell leaves in one process, and prints."""
    names = notebook(setup)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(cell, "<cell>", "exec"), names)
    return names, out.getvalue()


def gpt(width: int, layers: int, words: int) -> tuple[str, str]:
    """A GPT of that size with AdamW: what the notebook has beside it, and the lines that make it."""
    made = f"model = GPT(V={words}, d={width}, h=4, L={layers}, T=12)"
    before, made, after = GPT.replace("model = GPT()", made).replace("reshape(-1, 40)", f"reshape(-1, {words})").partition(made)
    return before + after, made + "\nopt = torch.optim.AdamW(model.parameters())\n"


def bytes_held(width: int, layers: int, words: int) -> dict[str, int]:
    """Bytes on this rank (held) and of one process (whole) after two steps: parameters, gradients and optimiser state.

    The GPT is made in the cell. grown: by so many the process has grown at most, while it was made and first called.
    """
    setup, made = gpt(width, layers, words)
    names = notebook(setup)
    with mode({"keep": "model,opt"}, names):
        before = resident()
        exec(made + "with torch.no_grad(): model(x)", names)
        grown = resident(peak=True) - before
        exec(TWO_STEPS, names)
        with torch._C.DisableTorchFunction():
            held = _bytes(names, lambda value: not value.is_meta)
            whole = _bytes(names, lambda value: True)
            weights = sum(value.nbytes for value in names["model"].parameters())
    return {"held": held, "whole": whole, "weights": weights, "grown": grown}


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has now, or the most since it was asked last for what it has."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB" if peak else r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(kib) * 1024


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


def kept() -> tuple[list[bool], bool]:
    """Where a kept model's parameters are after a cell, and whether a second cell on it equals one process."""
    setup = "model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))\nx = torch.randn(4, 6)\n"
    cell = "for p in model.parameters(): p.grad = None\nloss = model(x).pow(2).mean(); loss.backward(); out = loss.item()"
    expected, _ = plain(setup, cell + "\n" + cell)
    names = notebook(setup)
    with mode({"keep": "model"}, names):
        exec(cell, names)
    meta = [value.is_meta for value in names["model"].parameters()]
    with mode({}, names):
        exec(cell + "\nimport copy; whole = copy.deepcopy(model)", names)
    same = all(torch.equal(a, b) for a, b in zip(expected["model"].parameters(), names["whole"].parameters(), strict=True))
    return meta, same and names["out"] == expected["out"]


def saved(folder: str) -> tuple[bool, str]:
    """Whether the file that a cell saves holds the whole model, and what it wrote to another."""
    setup = f"model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))\nfile = {folder!r} + '/model.pt'\n"
    names = notebook(setup)
    expected = [value.clone() for value in names["model"].parameters()]
    with mode({}, names):
        exec("torch.save(model.state_dict(), file)\nopen(file + '.txt', 'a').write('once\\n')", names)
    dist.barrier()
    loaded = list(torch.load(folder + "/model.pt").values())
    whole = all(torch.equal(a, b) for a, b in zip(expected, loaded, strict=True))
    return whole, Path(folder, "model.pt.txt").read_text()


def by_name() -> tuple[list[str], list[float]]:
    """The mode as a rank's cell runner enters it."""
    names = notebook(MLP + SGD)
    with parallel.mode("model", {}, names) as report, contextlib.redirect_stdout(io.StringIO()):
        exec(TRAIN, names)
    return report.lines, names["losses"]


def fails_alike() -> tuple[str, bool, bool]:
    """A cell that raises on all ranks keeps what it did before: the error, and whether the weights are real and right."""
    setup = MLP + SGD
    expected, _ = plain(setup, TRAIN)
    names = notebook(setup)
    said = ""
    report = Report()
    try:
        with contextlib.redirect_stdout(io.StringIO()), mode({}, names, report):
            exec(TRAIN + "raise ValueError('enough')", names)
    except ValueError as error:
        said = str(error)
    pairs = zip(expected["model"].parameters(), names["model"].parameters(), strict=True)
    return said, report.details["whole"], all(not b.is_meta and torch.equal(a, b) for a, b in pairs)


def partial_failure() -> str:
    """An index that only the owner of the table can find wrong: what each rank raises."""
    setup = "model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))\nx = torch.tensor([1, 7])\n"
    names = notebook(setup)
    try:
        with Bell() as bell, mode({"failed": bell.ring}, names):
            exec("print(model(x).sum().item())", names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def everything(folder: str) -> dict[str, Any]:
    many = TRAIN.replace("range(4)", "range(14)")
    return {
        "placed by hand": run_cell(MLP + SGD, TRAIN, {"place": "model.0=1,2=1,4=0,6=0"}),
        "wrong name": run_cell(MLP + SGD, TRAIN, {"place": "modle=1"}),
        "micro auto": run_cell(MLP + SGD, many, {"micro": "auto"}),
        "kept": kept(),
        "saved": saved(folder),
        "by name": by_name(),
        "fails alike": fails_alike(),
        "partial failure": partial_failure(),
    }


def graph_on_one_rank(in_a_cycle: bool) -> tuple[list[str], list[float], list[float]]:
    """A graph of an earlier cell is alive on the last rank alone: the lines, and the losses of one process and of the cell."""
    expected, _ = plain(MLP + SGD, TRAIN)
    names = notebook(MLP + SGD)
    if dist.get_rank() == dist.get_world_size() - 1:
        holder = [names["model"](names["x"])]
        holder.append(holder)
        if in_a_cycle:
            del holder
    with contextlib.redirect_stdout(io.StringIO()), Bell() as bell, mode({"failed": bell.ring}, names) as report:
        exec(TRAIN, names)
    return report.lines, expected["losses"], names["losses"]
