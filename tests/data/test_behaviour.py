"""What the mode does beside giving equal results: what it says, what it costs, what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils import checkpoint
from torch.utils.data import DataLoader

import nbpar
from nbpar.errors import OptionError, Unsupported
from nbpar.parallel import api, mode
from nbpar.parallel.data import check
from nbpar.parallel.data.call import Splitter
from nbpar.parallel.data.trial import Trial
from nbpar.parallel.patch import patched as patching
from tests.data.test_equality import BACKEND
from tests.data.zoo import CELLS
from tests.ranks import run_ranks

PROGRAMS: dict[str, Callable[[], Any]] = {}


def program(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run by every rank of two."""
    PROGRAMS[function.__name__] = function
    return function


def run_programs() -> dict[str, Any]:
    found = {}
    for name, function in PROGRAMS.items():
        torch.manual_seed(0)
        try:
            found[name] = function()
        except Exception:
            found[name] = traceback.format_exc()
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(2, run_programs, backend=BACKEND)


def patched() -> list[Any]:
    names = [
        (nn.Module, "__call__"), (torch, "batch_norm"), (torch._C._nn, "cross_entropy_loss"), (torch._C._nn, "nll_loss_nd"),
        (checkpoint, "_checkpoint_without_reentrant_generator"), (checkpoint, "CheckpointFunction"), (torch.Tensor, "item"),
        (torch.Tensor, "numpy"), (torch.autograd, "_engine_run_backward"), (api, "splitter"), (api, "asked"),
        (DataLoader, "__iter__"), (torch, "save"),
    ]  # fmt: skip
    return [(getattr(owner, name), name in vars(owner)) for owner, name in names]


@program
def leaves_no_trace() -> bool:
    model, x = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), torch.randn(9, 5)
    before, namespace = patched(), {}
    for options in ({}, {"batch": ("x",)}, {"loss": "local"}, {"aggregate": "central"}):
        try:
            with mode("data", options, namespace):
                model(x).sum().backward()
                assert patched() != before
                raise KeyError("the cell's own")
        except KeyError:
            pass
        assert patched() == before and not namespace
    hooks = [h for p in model.parameters() for h in (p._backward_hooks or ())]
    return not hooks


def test_leaves_no_trace(ranks: list[dict[str, Any]]) -> None:
    assert [rank["leaves_no_trace"] for rank in ranks] == [True, True]


@program
def raises_alike() -> tuple[str, bool, list[str]]:
    """A label that only one rank's rows have."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    good, bad = torch.arange(9) % 5, torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 99])
    with mode("data", {}, {}) as report:
        model(good)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            model(bad)
        except IndexError as error:
            text = str(error)
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model(good)
    return text, same, report.lines


def test_an_error_of_one_rank_is_the_error_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        text, same, lines = rank["raises_alike"]
        assert text == "index out of range in self"
        assert same
        assert len(lines) == 1 and "runs whole on every rank" in lines[0]


@program
def given_dropout_between_cells() -> list[dict[str, int]]:
    """What a look finds changed is no other branch: the model is another."""
    model, x = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.0), nn.Linear(5, 2)), torch.randn(20, 5)
    calls = []
    for p in (0.0, 0.5, 0.0):
        model[1].p = p
        with mode("data", {}, {}) as report:
            for _ in range(3):
                model(x).sum().backward()
        calls.append(report.details["calls"]["Sequential"])
    return calls


def test_a_model_that_is_changed_between_cells_is_split_again(ranks: list[dict[str, Any]]) -> None:
    assert [rank["given_dropout_between_cells"] for rank in ranks] == [[{"split": 3}] * 3] * 2


class Counts(nn.Module):
    """Notes how many rows it is called with. way: what becomes of them."""

    def __init__(self, way: Callable[[torch.Tensor], torch.Tensor], rows: list[int]) -> None:
        super().__init__()
        self.a, self.way = nn.Linear(5, 5), way
        self.note = rows.append

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        self.note(x.shape[0])
        return self.way(h)


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "known": torch.tanh,
    "not known": lambda h: torch.linalg.matrix_exp(h[:, :4].view(-1, 2, 2)).flatten(1),
}


@program
def rows_of_a_check() -> dict[str, list[int]]:
    found = {}
    for name, way in WAYS.items():
        rows: list[int] = []
        model, x = Counts(way, rows), torch.randn(40, 5)
        with mode("data", {}, {}) as report:
            for _ in range(3):
                model(x).sum().backward()
        assert report.details["checks"] == 1 and report.details["check seconds"] > 0
        found[name] = [int(count) for count in rows]
        if name == "known":
            assert abs(report.details["check forwards"] - sum(count for count in found[name] if count != 20) / 40) < 1e-9
    return found


def test_a_check_takes_few_rows_where_operators_are_known_and_else_one_forward(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        known, unknown = rank["rows_of_a_check"]["known"], rank["rows_of_a_check"]["not known"]
        assert known.count(20) == 3 == unknown.count(20)
        assert known.count(40) == 0 and unknown.count(40) == 1
        few = [count for count in known if count != 20]
        assert len(few) == 4 and sum(few) <= 12, "four rows whole and two split, in the check and in one later look"
        assert sum(count for count in unknown if count not in (20, 40)) <= 20


class Later(nn.Module):
    """With more than eight rows the gradient of each depends on the others; its outputs do not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.a(x))
        if len(x) > 8:
            h = h + h.roll(1, 0) - h.roll(1, 0).detach()
        result: torch.Tensor = self.b(h)
        return result


def gradient_of_later() -> tuple[float, float, list[str]]:
    """The largest difference of gradients from one process, the rows of the checks in forwards, and what was said."""
    model, x = Later().double(), torch.randn(40, 5, dtype=torch.float64)
    way = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]

    def gradient() -> torch.Tensor:
        model.zero_grad()
        (model(x) * way).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    alone = gradient()
    with mode("data", {}, {}) as report:
        found = [gradient() for _ in range(3)][-1]  # at the first two calls it looks
    return float((found - alone).abs().max()), report.details["check forwards"], report.lines


@program
def rows_that_decide_by_their_number() -> Any:
    with patching(check, "COUNTED", lambda never: "never said"):
        tried = gradient_of_later()
    return gradient_of_later(), tried


def test_a_program_that_goes_by_the_number_of_rows_runs_whole_as_a_few_do_not_show_it(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (difference, forwards, lines), (wrong, _, _) = rank["rows_that_decide_by_their_number"]
        assert difference < 1e-12 and forwards < 0.5, forwards
        assert "runs whole" in lines[0] and "number or the place of its rows" in lines[0] and "`@nbpar.split`" in lines[0]
        assert wrong > 1e-3, "a trial of a few rows would do"


KNOWN = (
    "mlp", "cnn with batchnorm and dropout", "resnet", "transformer encoder", "gpt, tied weights, loss inside", "lstm, batch first",
    "u-net", "vae with reparametrisation", "gan with two optimisers", "word language model, (T·B, V) logits",
    "activation checkpointing", "activation checkpointing, reentrant", "bfloat16 autocast", "split function",
)  # fmt: skip


@program
def tried_by_values() -> tuple[list[str], dict[str, float]]:
    """The programs of whose operators some are not known; and how much of a batch's rows a check of each takes."""
    found: list[str] = []
    rows: dict[str, float] = {}
    for name in KNOWN:
        cell, names = CELLS[name], {}
        exec(cell.first, names)
        no_later_look = patching(Splitter, "still", lambda still: lambda *call: True)
        with no_later_look, patching(Trial, "thorough", lambda look, name=name: lambda trial: found.append(name) or look(trial)):
            with patching(Trial, "quick", lambda look, name=name: lambda trial: found.append(name) or look(trial)):
                with mode("data", {}, names) as report:
                    exec(cell.train, names)
        rows[name] = report.details["check forwards"] / report.details["checks"]
    torch.set_default_dtype(torch.float32)
    return found, rows


def test_operators_of_common_models_are_known(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found, rows = rank["tried_by_values"]
        assert found == []
        assert len(rows) == len(KNOWN)
        more = {name: part for name, part in rows.items() if not 0 < part <= 1}
        assert more.keys() <= {"word language model, (T·B, V) logits"}, more  # its first dimension, of 6, is tried first


class Mean(torch.autograd.Function):
    """Nothing, but in the backward pass the mean over rows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad - grad.mean(0)


class Body(nn.Module):
    """Two layers, and a last one and its gate that are zero at first. way: what the call does with its rows or weights."""

    def __init__(self, way: Callable[[Body, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.last, self.gate = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(3))
        nn.init.zeros_(self.last.weight)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.b(self.way(self, torch.tanh(self.a(x))))) * self.gate + x[:, :3]


def rows_mean(body: Body, h: torch.Tensor) -> torch.Tensor:
    return h - h.mean(0)


def rows_mean_backward(body: Body, h: torch.Tensor) -> torch.Tensor:
    return Mean.apply(h)


def writes_by_list(body: Body, h: torch.Tensor) -> torch.Tensor:
    torch._foreach_mul_([body.b.weight.detach(), body.b.bias.detach()], 0.9)
    return h


def writes_by_numpy(body: Body, h: torch.Tensor) -> torch.Tensor:
    body.b.weight.detach().numpy()[...] *= 0.9
    return h


@program
def found_by_the_check() -> dict[str, tuple[list[str], bool]]:
    found = {}
    for way in (rows_mean, rows_mean_backward, writes_by_list, writes_by_numpy):
        model, x = Body(way), torch.randn(9, 5)
        with torch.no_grad():  # what one process leaves
            before, out = {name: value.clone() for name, value in model.state_dict().items()}, [model(x) for _ in range(4)]
            after = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(before)
        with mode("data", {}, {}) as report:
            same = [torch.allclose(model(x), one, atol=1e-6) for one in out]
        same += [torch.allclose(value, after[name], atol=1e-6) for name, value in model.state_dict().items()]
        found[way.__name__] = report.lines, all(same)
    return found


def test_what_the_check_finds_behind_zeros_and_in_memory(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["found_by_the_check"]
        assert all(same for _, same in found.values()), found
        for name in ("rows_mean", "rows_mean_backward"):
            assert len(lines := found[name][0]) == 1 and "rows mix" in lines[0], found
        assert not found["writes_by_list"][0]


class MaskedMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.a(x) * mask).sum() / mask.sum()


@program
def means_over_masks() -> tuple[list[str], bool]:
    model, x, mask = MaskedMean(), torch.randn(9, 5), torch.ones(9, 5)
    later = mask.clone()
    later[:3] = 0
    wanted = [model(x, mask), model(x, later)]
    with mode("data", {}, {}) as report:
        same = all(torch.allclose(model(x, m), one) for m, one in zip((mask, later), wanted, strict=True))
    return report.lines, same


def test_a_mean_over_a_mask_that_is_full_at_first_runs_whole(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        lines, same = rank["means_over_masks"]
        assert same and len(lines) == 1


@program
def few_collectives() -> dict[str, Any]:
    cell = CELLS["gpt, tied weights, loss inside"]
    names: dict[str, Any] = {}
    exec(cell.first, names)
    with mode("data", {}, names):
        exec(cell.train, names)
    with mode("data", {}, names) as report:
        exec(cell.train, names)
    torch.set_default_dtype(torch.float32)
    return report.details


def test_gradients_are_bucketed(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        details = rank["few_collectives"]
        assert details["backward passes"] == 5
        assert details["collectives"]["gradients"] == 5


@program
def tiny_runs_whole() -> tuple[list[str], dict[str, int], bool]:
    model = nn.Linear(3, 2)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    with mode("data", {}, {}) as report:
        for _ in range(80):
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    every: list[Any] = [None, None]
    dist.all_gather_object(every, model.weight)
    return report.lines, report.details["calls"]["Linear"], torch.equal(*every)


def test_a_tiny_call_runs_whole_and_says_so(ranks: list[dict[str, Any]]) -> None:
    (lines, counts, same), (_, others, _) = (rank["tiny_runs_whole"] for rank in ranks)
    assert counts == others and same
    whole = counts.get("whole", 0)
    assert counts["split"] + whole == 80
    assert whole < 20 or (len(lines) == 1 and "that is quicker, as measured" in lines[0])


@program
def local_batchnorm() -> tuple[list[str], bool, bool]:
    model, exact, x = nn.BatchNorm1d(5), nn.BatchNorm1d(5), torch.randn(9, 5)
    exact(x)
    with mode("data", {"local_batchnorm": True}, {}) as report:
        out = model(x)
        out.pow(3).sum().backward()
    every: list[Any] = [None, None]
    dist.all_gather_object(every, (model.running_var, out.detach(), model.weight.grad))
    alike = all(torch.equal(a, b) for a, b in zip(*every, strict=True))
    return report.lines, alike, torch.allclose(model.running_var, exact.running_var)


def test_local_batchnorm_is_alike_on_all_ranks_but_not_exact(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        lines, alike, exact = rank["local_batchnorm"]
        assert alike and not exact
        assert any("--local-batchnorm" in line for line in lines)


@program
def large_outputs() -> dict[str, Any]:
    model, x = nn.Linear(4, 50_000), torch.randn(7, 4)
    found: dict[str, Any] = {}
    with mode("data", {}, {}):
        out = model(x)
        out = model(x)
        loss = F.cross_entropy(out, torch.arange(7))
        found["waits"] = type(out) is not torch.Tensor
        try:
            torch.autograd.grad(loss, out)
        except Unsupported as error:
            found["too late"] = str(error)
        fresh = model(x)
        grad = torch.autograd.grad(fresh.pow(2).sum(), fresh)[0]
        found["in time"] = torch.equal(grad, 2 * fresh) and type(fresh) is torch.Tensor
        kept = model(x)
    found["gathered at the end"] = type(kept) is torch.Tensor and torch.allclose(kept, model(x), atol=1e-5)
    with mode("data", {}, {}):
        before = model(x)
        nbpar.rank()
        after = model(x)
        found["asked"] = type(before) is torch.Tensor and type(after) is torch.Tensor
    return found


def test_large_outputs_wait_until_somebody_looks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["large_outputs"]
        assert "clone()" in found.pop("too late")
        assert all(found.values()) and len(found) == 4, found


@program
def changed_between_cells() -> tuple[bool, list[str], list[str]]:
    model, x = nn.Linear(4, 3), torch.randn(9, 4)
    with mode("data", {}, {}) as first:
        for _ in range(5):
            model(x)
    model.forward = lambda x: x @ model.weight.t() - x.mean()  # type: ignore[method-assign]
    with mode("data", {}, {}) as second:
        got = model(x)
    return torch.allclose(got, model(x)), first.lines, second.lines


def test_a_module_changed_between_cells_is_seen_to_mix_rows(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        right, first, second = rank["changed_between_cells"]
        assert right and not first
        assert len(second) == 1 and "rows mix" in second[0]


@program
def reasons() -> dict[str, list[str]]:
    found = {}
    for name in ("branch on its data", "style: forward hook, inner", "style: lengths as a list", "per-row noise from numpy"):
        cell, names = CELLS[name], {}
        exec(cell.first, names)
        with mode("data", {}, names) as report:
            exec(cell.train, names)
        found[name] = report.lines
    torch.set_default_dtype(torch.float32)
    return found


def test_what_runs_whole_is_said_once_with_a_reason(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["reasons"] == ranks[1]["reasons"]
    for lines in ranks[0]["reasons"].values():
        assert len(lines) == 1 and "runs whole on every rank: " in lines[0] and lines[0].endswith(".")


def test_modes_and_options() -> None:
    with mode("each", {}, {}) as report:
        assert report.lines == []
    with pytest.raises(OptionError, match=r"no mode 'dta'\. Did you mean 'data'"):
        with mode("dta", {}, {}):
            pass


def test_outside_a_world_everything_is_an_identity() -> None:
    assert (nbpar.rank(), nbpar.size()) == (0, 1)

    @nbpar.split
    def double(x: int) -> int:
        return 2 * x

    assert double(3) == 6 and double.__name__ == "double"
    assert nbpar.split(lambda x: x + 1, batch_dim=1)(2) == 3


def test_the_api_needs_no_torch() -> None:
    code = "import sys, nbpar; nbpar.rank(), nbpar.split; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
