"""Cells as people write them leave and print the same in a mesh as in one process."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import pytest

from tests.cells import Cell
from tests.equal import Outcome, run_all
from tests.model.zoo import SGD, TRAIN
from tests.ranks import run_ranks
from tests.zoo import DROPLESS, LAYERED, NOT_SPLIT, REFUSED, STYLES, ZOO

# Split in mode `data`, and not here.
WHOLE = {
    "parameters used on some rows only": "on different ranks, for different rows",
    "style: tensors that are not registered": "ranks use different tensors",
}

# Stages by their time: one layer is applied many times.
SLOW = """
class Slow(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(8, 8)
    def forward(self, x):
        for _ in range(60): x = torch.tanh(self.a(x))
        return x
model = nn.Sequential(Slow(), nn.Dropout(0.1), nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 8), nn.Linear(8, 4))
x, y = torch.randn(8, 8), torch.randint(4, (8,))
criterion = nn.CrossEntropyLoss()
"""


def asked(name: str, **options: object) -> Cell:
    return replace(ZOO[name], options={**ZOO[name].options, **options})


PIECES = ["mlp (layers)", *DROPLESS, "resnet (layers)", "style: loss inside, dict, ignored later"]
COLUMNS = ("mlp (", "resnet (", "gpt (", "lstm (", "cnn", "gan", "clipping", "ignore_index", "drawn noise", "style: multi")
OTHERS: dict[str, Cell] = {
    **{f"micro: {name}": asked(name, micro=2) for name in PIECES},
    "4x1: resnet": asked("resnet (layers)", mesh="4x1"),
    "1x4: resnet": asked("resnet (layers)", mesh="1x4"),
    "by size": Cell("by size", SLOW + SGD, TRAIN),
    "by time": Cell("by time", SLOW + SGD, TRAIN, {"balance": "time"}),
    "placed": asked("mlp (layers)", place="model.0=1,model.2=1,model.4=0,model.6=0"),
}
TENSOR = {f"tensor: {name}": asked(name, how="tensor") for name in ZOO if name.startswith(COLUMNS)}
PROGRAMS = [name for name in ZOO if name not in STYLES]
SOME_STYLES = STYLES if os.environ.get("NBPAR_TEST_ALL") else [name for name in STYLES if name in REFUSED] + STYLES[::3]
CASES = {**ZOO, **OTHERS, **TENSOR}
# Cases of one group run one after the other in one start of four ranks.
GROUPS = [[*OTHERS], [*TENSOR], PROGRAMS[::2], PROGRAMS[1::2], SOME_STYLES]


@functools.cache
def outcomes(group: int) -> list[dict[str, Outcome]]:
    return run_ranks(4, run_all, {name: CASES[name] for name in GROUPS[group]}, "hybrid", {"mesh": "2x2"}, timeout=500)


@pytest.mark.timeout(520)  # the first of a group waits for all of it
@pytest.mark.parametrize(("group", "name"), [(at, name) for at, group in enumerate(GROUPS) for name in group])
def test_a_cell_is_equal_or_refused(group: int, name: str) -> None:
    found = [result[name] for result in outcomes(group)]
    if name in REFUSED:
        assert {outcome.refused for outcome in found} == {found[0].refused}
        assert REFUSED[name] in found[0].refused
        return
    for outcome in found:
        assert outcome.equal(CASES[name].tolerance, rounded=name in TENSOR), outcome
    lines, details = found[0].lines, found[0].details
    split = any(counts.keys() & {"split", "compared"} for counts in details.get("calls", {}).values())
    if name in WHOLE:
        assert any(WHOLE[name] in line for line in lines)
    elif name in ZOO:
        assert split == (name not in NOT_SPLIT), lines
    if name in LAYERED:
        assert set(details["placed"].values()) == {0, 1}


def test_the_borders_of_the_mesh_are_the_other_modes() -> None:
    data, model = (outcomes(0)[0][f"{mesh}: resnet"].details for mesh in ("4x1", "1x4"))
    assert data["calls"] == {"ResNet": {"split": 4}} and "placed" not in data
    assert set(model["placed"].values()) == {0, 1, 2, 3} and "calls" not in model


def test_stages_are_divided_by_time_and_by_hand() -> None:
    size, time, hand = (list(outcomes(0)[0][name].details["placed"].values()) for name in ("by size", "by time", "placed"))
    assert (size, time, hand) == ([0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0])
