"""Options, placement, what stays and what fails."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import pytest

from nbpar.errors import OptionError
from nbpar.parallel.model.mode import parse
from tests.model.programs import everything, graph_on_one_rank, run_cell
from tests.model.zoo import MLP, SGD, TRAIN
from tests.ranks import run_ranks


def test_options_are_read() -> None:
    assert parse({"place": "encoder=0, decoder=1", "micro": "4", "keep": ("a", "b")}).place == {"encoder": 0, "decoder": 1}
    assert parse({"micro": "auto"}).micro == 0
    assert parse({}).micro == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"micro": "many"}, "--micro many"),
        ({"place": "encoder"}, "name=rank"),
        ({"balance": "tme"}, "--balance tme"),
        ({"how": "rows"}, "--how rows"),
        ({"palce": "a=1"}, "Did you mean 'place'?"),
    ],
)
def test_a_wrong_option_says_what_to_type(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words.replace("?", r"\?")):
        parse(options)


@functools.cache
def results() -> list[dict[str, Any]]:
    """Every program, in one start of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(2, everything, folder)


def test_layers_are_placed_by_hand() -> None:
    placed = results()[0]["placed by hand"]["details"]["placed"]
    assert placed == {"model.0": 1, "model.2": 1, "model.4": 0, "model.6": 0}


def test_a_name_that_no_module_has_is_refused_with_a_suggestion() -> None:
    assert "no module of that name. Did you mean 'model'?" in results()[0]["wrong name"]["error"]


def test_micro_auto_measures_and_says_its_choice() -> None:
    first, second = (result["micro auto"]["lines"] for result in results())
    (line,) = [line for line in first if line.startswith("micro-batches of Sequential")]
    assert "8: " in line and line in second


def test_what_is_kept_stays_on_its_ranks_and_works_in_the_next_cell() -> None:
    for rank, result in enumerate(results()):
        meta, again = result["kept"]
        assert meta == [rank == 1, rank == 1, rank == 0, rank == 0]
        assert again


def test_a_file_is_written_once_and_whole() -> None:
    assert [result["saved"] for result in results()] == [(True, "once\n"), (True, "once\n")]


def test_the_mode_is_reached_by_its_name() -> None:
    for result in results():
        lines, losses = result["by name"]
        assert lines == ["layers by rank: 2, 2"]
        assert len(losses) == 4


def test_a_cell_that_raises_keeps_what_it_did_before() -> None:
    for result in results():
        assert result["fails alike"] == ("enough", True, True)


def test_an_error_of_the_owner_alone_reaches_the_others() -> None:
    owner, other = (result["partial failure"] for result in results())
    assert owner == "IndexError: index out of range in self"
    assert other.startswith("PeerFailed: a rank failed: index out of range in self; this rank was waiting in ")


def test_one_rank_runs_the_cell_as_it_is() -> None:
    (only,) = run_ranks(1, run_cell, MLP + SGD, TRAIN, {})
    assert only["lines"] == []
    assert len(only["names"]["losses"]) == 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_graph_that_one_rank_alone_holds(ranks: int) -> None:
    """All ranks decide alike: the model is split if a cycle held the graph, else it is whole on every rank."""
    for lines, expected, losses in run_ranks(ranks, graph_on_one_rank, True):
        assert not any("is alive" in line for line in lines) and losses == pytest.approx(expected, rel=0, abs=1e-13)
    for lines, expected, losses in run_ranks(ranks, graph_on_one_rank, False):
        assert any("is whole on every rank: a graph" in line for line in lines)
        assert losses == pytest.approx(expected, rel=0, abs=1e-13)
