"""Cells as people write them leave and print the same in a mesh as in one process."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

from tests.data import styles  # noqa: F401  (adds its cells to the zoo)
from tests.data import zoo as common
from tests.hybrid.compare import run_all
from tests.model import zoo
from tests.model.harness import Outcome
from tests.ranks import run_ranks

# Refused on all ranks alike, with these words, as in mode `model`.
REFUSED = {
    "common: style: per-sample gradients by vmap": "torch.vmap",
    "common: style: multi-head attention, padding mask, evaluation": "set_fastpath_enabled",
}
# Split in mode `data`, and not here.
WHOLE = {
    "common: parameters used on some rows only": "on different ranks, for different rows",
}

Case = tuple[str, str, dict[str, Any], tuple[str, ...]]  # setup, cell, options, names that are not compared

OWN: dict[str, Case] = {name: (*case, {}, ()) for name, case in zoo.ZOO.items()}
COMMON: dict[str, Case] = {
    f"common: {name}": (cell.setup, cell.train, cell.options, cell.ignore)
    for name, cell in common.CELLS.items()
    if "workers" not in name
}
TOLERANCE = {f"common: {name}": cell.tolerance for name, cell in common.CELLS.items()}
IGNORED_LATER = common.CELLS["style: loss inside, dict, ignored later"]
MICRO: dict[str, Case] = {
    **{f"micro: {name}": (*case, {"micro": 2}, ()) for name, case in zoo.MICRO.items()},
    "micro: resnet": (*zoo.ZOO["resnet"], {"micro": 2}, ()),
    "micro: ignored labels": (IGNORED_LATER.setup, IGNORED_LATER.train, {"micro": 2}, ()),
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
BORDERS: dict[str, Case] = {
    "4x1: resnet": (*zoo.ZOO["resnet"], {"mesh": "4x1"}, ()),
    "1x4: resnet": (*zoo.ZOO["resnet"], {"mesh": "1x4"}, ()),
    "by size": (SLOW + zoo.SGD, zoo.TRAIN, {}, ()),
    "by time": (SLOW + zoo.SGD, zoo.TRAIN, {"balance": "time"}, ()),
    "placed": (*zoo.ZOO["mlp"], {"place": "model.0=1,model.2=1,model.4=0,model.6=0"}, ()),
}
TENSOR: dict[str, Case] = {
    **{f"tensor: {name}": (*zoo.ZOO[name], {"how": "tensor"}, ()) for name in ("mlp", "resnet", "gpt", "lstm")},
    **{
        f"tensor: {name}": (cell.setup, cell.train, {**cell.options, "how": "tensor"}, cell.ignore)
        for name, cell in common.CELLS.items()
        if name.startswith(("cnn", "gan", "clipping", "accumulation", "ignore_index", "noise", "style: multi"))
    },
}
PROGRAMS = [name for name in COMMON if "style" not in name]
STYLES = [name for name in COMMON if "style" in name]
if not os.environ.get("NBPAR_TEST_ALL"):
    STYLES = [name for name in STYLES if name in REFUSED] + STYLES[::3]
CASES = {**OWN, **MICRO, **BORDERS, **TENSOR, **COMMON}
# Cases of one group run one after the other in one start of four ranks.
GROUPS = [[*OWN, *MICRO, *BORDERS], [*TENSOR], PROGRAMS[::2], PROGRAMS[1::2], STYLES]


@functools.cache
def outcomes(group: int) -> list[dict[str, Outcome]]:
    return run_ranks(4, run_all, {name: CASES[name] for name in GROUPS[group]}, {"mesh": "2x2"}, timeout=500)


@pytest.mark.timeout(520)  # the first of a group waits for all of it
@pytest.mark.parametrize(("group", "name"), [(at, name) for at, group in enumerate(GROUPS) for name in group])
def test_a_cell_is_equal_or_refused(group: int, name: str) -> None:
    found = [result[name] for result in outcomes(group)]
    if name in REFUSED:
        assert {outcome.refused for outcome in found} == {found[0].refused}
        assert REFUSED[name] in found[0].refused
        return
    for outcome in found:
        assert not outcome.refused and not outcome.error
        assert outcome.text, outcome.shown
        assert outcome.random and outcome.keys
        assert outcome.difference <= TOLERANCE.get(name, 1e-12), outcome.worst
    lines, details = found[0].lines, found[0].details
    split = any(counts.get("split") for counts in details.get("calls", {}).values())
    if name in WHOLE:
        assert any(WHOLE[name] in line for line in lines)
    elif name in COMMON:
        assert split == common.CELLS[name.removeprefix("common: ")].split, lines
    elif name in OWN:
        assert split == (name != "branch"), lines
        assert set(details["placed"].values()) == {0, 1}


def test_the_borders_of_the_mesh_are_the_other_modes() -> None:
    data, model = (outcomes(0)[0][f"{mesh}: resnet"].details for mesh in ("4x1", "1x4"))
    assert data["calls"] == {"ResNet": {"split": 4}} and "placed" not in data
    assert set(model["placed"].values()) == {0, 1, 2, 3} and "calls" not in model


def test_stages_are_divided_by_time_and_by_hand() -> None:
    size, time, hand = (list(outcomes(0)[0][name].details["placed"].values()) for name in ("by size", "by time", "placed"))
    assert (size, time, hand) == ([0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0])
