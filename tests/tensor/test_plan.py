"""The picture of layers that are split by columns."""

from __future__ import annotations

from torch import nn

from nbpar.display.split import split
from nbpar.plan.outline import outline

MODEL = nn.Sequential(nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 2))


def test_every_rank_holds_columns_of_each_layer() -> None:
    plan = outline({"model": MODEL}, "model", 3, {"how": "tensor"})
    assert plan and plan.columns == ((2, 2, 2), (), (4, 3, 3), ())
    grid = split(plan)[0]
    assert "the columns of each over 3 ranks" in grid.title
    assert [[cell.state for cell in row] for row in grid.cells] == [["part"] * 3, ["replica"] * 3, ["part"] * 3, ["replica"] * 3]
    assert [cell.label for cell in grid.cells[2]] == ["4 columns", "3 columns", "3 columns"]


def test_memory_is_a_share_of_each_layer() -> None:
    plan = outline({"model": MODEL}, "model", 3, {"how": "tensor"})
    assert plan
    whole = [9 * 6, 12, 6 * 10 + 10, 10 * 2 + 2]
    shares = [54 / 3, 12, 70 * 0.4, 22]
    assert plan.memory[0]["weights"] == 4 * sum(shares) and sum(whole) > sum(shares)


def test_after_the_cell_it_is_what_the_ranks_say() -> None:
    said = {"model.0.weight": (1, (2, 2, 2)), "model.3.weight": (1, (4, 3, 3))}
    plan = outline({"model": MODEL}, "model", 3, {"how": "tensor"}, split=said)
    assert plan and plan.columns == ((2, 2, 2), (), (), (4, 3, 3))
