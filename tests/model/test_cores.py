"""While one rank works and all others of its host wait, it has their cores, where that is quicker."""

from __future__ import annotations

import functools
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbpar.comm.state import state
from nbpar.parallel import mode
from nbpar.parallel.model import pace
from nbpar.parallel.model.pace import STEPS, Pace
from nbpar.ranks import machine
from nbpar.ranks.prepare import seed_everything
from tests.ranks import run_ranks

THREADS: list[int] = []
PIECES = 4


class Seen(nn.Module):
    """Notes how many threads there are when it is called, and when the gradient of what it was given comes."""

    def forward(self, x: Tensor) -> Tensor:
        note(None)
        if x.requires_grad:
            x.register_hook(note)
        return x


def note(_: Any) -> None:
    THREADS.append(torch.get_num_threads())


def step(names: dict[str, Any], backward: bool = True) -> None:
    THREADS.clear()
    loss = F.cross_entropy(names["model"](names["x"]), names["y"])
    if backward:
        loss.backward()


def chain() -> nn.Module:
    return nn.Sequential(Seen(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), Seen())


class Branches(nn.Module):
    """y = a(h) + b(h), the branches on different ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.seen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), Seen()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y: Tensor = self.a(h) + self.b(h)
        return self.seen(y)  # type: ignore[no-any-return]


def whole() -> dict[str, list[list[int]]]:
    """Of this rank, by program: in steps that are measured with a rank's own threads and with more, and after each."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 8), torch.randint(8, (8,))
    programs: dict[str, tuple[nn.Module, dict[str, Any], int]] = {
        "one after another": (chain(), {}, 1),
        "branches": (Branches(), {"place": {"first": 0, "a": 0, "b": 1}}, 1),
        "two calls, one backward pass": (chain(), {}, 2),
    }
    found = {}
    for name, (model, options, calls) in programs.items():
        seed_everything(0)
        names: dict[str, Any] = {"model": model, "x": x, "y": y}
        found[name] = []
        with mode("model", options, names):
            for _ in range(2 * STEPS):
                THREADS.clear()
                sum(F.cross_entropy(model(x), y) for _ in range(calls)).backward()  # type: ignore[union-attr]
                found[name].append([*THREADS, torch.get_num_threads()])
    return found


def threads(crowded: bool) -> dict[str, Any]:
    """Of this rank: in the pieces of a step and of a call without gradients; as cells end, and after. More threads are chosen."""
    state.crowded = state.crowded or crowded
    pace.SLACK = 1.0
    seed_everything(0)
    names: dict[str, Any] = {"model": chain(), "x": torch.randn(8, 8), "y": torch.randint(8, (8,))}
    found: dict[str, Any] = {}
    with mode("model", {"micro": PIECES}, names):
        for _ in range(STEPS):
            step(names)
        found["own"] = list(THREADS)
        for _ in range(STEPS + 1):
            step(names)
        found["step"] = list(THREADS)
        with torch.no_grad():
            step(names, backward=False)
        found["no gradients"] = list(THREADS)
        step(names, backward=False)
        found["at the end"] = torch.get_num_threads()
    found["after"] = torch.get_num_threads(), state.lent
    names["model"] = chain()  # the graph of the last one may be alive
    with pytest.raises(ZeroDivisionError), mode("model", {"micro": PIECES}, names):
        for number in range(STEPS + 1):
            step(names, backward=number < STEPS)
        found["at an error"] = torch.get_num_threads()
        raise ZeroDivisionError
    found["after an error"] = torch.get_num_threads(), state.lent
    names["model"] = chain()
    os.environ["OMP_NUM_THREADS"] = "2"  # what it was given
    with mode("model", {"micro": PIECES}, names):
        for _ in range(STEPS + 1):
            step(names)
    found["chosen"] = list(THREADS)
    return found


@functools.cache
def found(crowded: bool) -> list[dict[str, Any]]:
    return run_ranks(2, threads, crowded)


def test_the_first_stage_has_all_cores_until_it_sends_its_first_piece() -> None:
    most = min(2, machine.cores())
    forward, backward = found(False)[0]["step"][: 2 * PIECES], found(False)[0]["step"][2 * PIECES :]
    assert forward == [most, 1] + [1, 1] * (PIECES - 1)
    assert backward == [1] * PIECES


def test_the_last_stage_has_all_cores_from_its_last_piece_until_it_sends_a_gradient() -> None:
    most = min(2, machine.cores())
    forward, backward = found(False)[1]["step"][: 2 * PIECES], found(False)[1]["step"][2 * PIECES :]
    assert forward == [1, 1] * (PIECES - 1) + [most, most]
    assert backward == [most] + [1] * (PIECES - 1)


def test_without_gradients_nobody_waits_for_the_last_piece() -> None:
    for one in found(False):
        assert set(one["no gradients"]) == {1}


def test_cores_are_given_back_at_the_end_of_a_cell() -> None:
    most = min(2, machine.cores())
    assert found(False)[1]["at the end"] == found(False)[1]["at an error"] == most
    for one in found(False):
        assert one["after"] == one["after an error"] == (1, False)


def test_who_chooses_a_number_of_threads_has_it() -> None:
    for one in found(False):
        assert one["chosen"] == [1] * 3 * PIECES


def test_a_crowded_host_has_no_cores_to_lend() -> None:
    for one in found(True):
        assert set(one["step"]) == {1}


def test_a_few_steps_are_made_without() -> None:
    for one in found(False):
        assert set(one["own"]) == {1}


@functools.cache
def found_whole() -> list[dict[str, list[list[int]]]]:
    return run_ranks(2, whole)


def test_whole_calls_have_all_cores_where_one_rank_works_at_a_time() -> None:
    most = min(2, machine.cores())
    for one in found_whole():
        assert one["one after another"] == [[1, 1, 1, 1]] * STEPS + [[most, most, most, 1]] * STEPS


@pytest.mark.parametrize("program", ["branches", "two calls, one backward pass"])
def test_no_cores_are_lent_where_ranks_may_work_at_the_same_time(program: str) -> None:
    for one in found_whole():
        assert {number for step in one[program] for number in step} == {1}


@pytest.mark.parametrize("quickest", ["few", "many"])
def test_the_way_of_the_shortest_steps_is_chosen(quickest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of each way does not count: here it is the longest of the quickest way."""
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pace, "channel", lambda: SimpleNamespace(decide=lambda best: best))
    measured: Pace[str] = Pace(("few", "many"))
    taken = []
    for number in range(2 * STEPS):
        way = measured.way()
        taken.append(way)
        clock[0] += (9.0 if number % STEPS == 0 else 1.0) if way == quickest else 2.0
    assert taken == ["few"] * STEPS + ["many"] * STEPS
    assert measured.way() == measured.chosen == quickest
    assert measured.best == {quickest: 1.0, ("few" if quickest == "many" else "many"): 2.0}


@pytest.mark.parametrize(("many", "chosen"), [(1.04, "many"), (1.07, "few")])
def test_what_is_expected_is_chosen_unless_another_is_clearly_quicker(
    many: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pace, "channel", lambda: SimpleNamespace(decide=lambda best: best))
    measured: Pace[str] = Pace(("few", "many"), expected="many")
    for _ in range(2 * STEPS):
        clock[0] += 1.0 if measured.way() == "few" else many
    assert measured.way() == chosen


def test_calls_without_gradients_are_not_steps() -> None:
    measured: Pace[str] = Pace(("few", "many"))
    with torch.no_grad():
        assert [measured.way() for _ in range(9 * STEPS)] == ["few"] * 9 * STEPS
    assert measured.way() == "few" and measured.chosen is None
