"""What is split and how, what a rank holds of it, and what the notebook gets back."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.tensor.programs import bytes_held, everything


@functools.cache
def results(ranks: int) -> list[dict[str, Any]]:
    return run_ranks(ranks, everything)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_holds_its_columns_only(ranks: int) -> None:
    """Bytes of parameters, of gradients and of optimiser state, each at most 1.4 of the model over the ranks."""
    for held in run_ranks(ranks, bytes_held, 64, 4, 300):
        for kind, (here, whole) in held.items():
            assert here * ranks <= 1.4 * whole, kind
            assert here < whole


def test_columns_that_do_not_divide_go_to_the_first_ranks() -> None:
    for result in results(3):
        assert result["uneven"]["split"] == {"model.weight": (0, (4, 3, 3)), "model.bias": (0, (4, 3, 3))}


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_linear_after_a_split_one_takes_its_columns(ranks: int) -> None:
    """With nothing but elementwise operations between them; else the output is gathered."""
    for result in results(ranks):
        dims = {name: dim for name, (dim, _) in result["pairs"]["split"].items() if name.endswith("weight")}
        assert dims == {"model.a.weight": 0, "model.b.weight": 1, "model.c.weight": 0, "model.d.weight": 0}


def test_what_is_whole_is_said_with_the_reason() -> None:
    (result, *_) = results(3)
    assert "fewer columns than ranks (1)" in " ".join(result["few columns"]["lines"])
    assert result["few columns"]["split"]["model.0.weight"] == (1, (2, 2, 2))
    assert result["shared memory"]["lines"] == ["whole on every rank: model.weight: another variable has the same memory"]
    assert result["groups"]["lines"][-1] == "whole on every rank: model (Conv2d): its groups are separate"


def test_an_option_of_the_other_way_is_refused() -> None:
    assert results(3)[0]["option"]["error"] == "--how tensor has no option 'micro'."


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_notebook_gets_its_own_objects_back(ranks: int) -> None:
    for result in results(ranks):
        assert all(result["home"].values()), result["home"]
