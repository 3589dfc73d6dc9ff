"""What everyday modules leave is what one process leaves, and their checks put no more rows through calls than one forward does."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from nbpar.parallel import mode
from tests.cells import Cell
from tests.data.everyday import CELLS
from tests.data.test_equality import BACKEND
from tests.equal import Outcome, execute, notebook, run_all
from tests.ranks import run_ranks
from tests.zoo import ZOO

# Of the zoo: whose sizes belong together, or whose calls have hardly more rows than there are ranks.
FIXED = (
    "packed sequence", "lengths as", "sparse embedding", "fewer rows", "one output column", "captured tensor",
    "dataloader with workers",
)  # fmt: skip


def large() -> dict[str, Cell]:
    """Programs of the zoo with batches of 64 rows."""
    wanted = {
        name: cell
        for name, cell in ZOO.items()
        if "13" in cell.first and not {"batch", "loss"} & cell.options.keys() and not any(word in name for word in FIXED)
    }
    return {
        name: replace(cell, setup=re.sub(r"\b13\b", "64", cell.setup), train=re.sub(r"\b13\b", "64", cell.train))
        for name, cell in wanted.items()
    }


def forwards(cells: dict[str, Cell]) -> dict[str, float]:
    """Rows that checks put through calls of one kind, in units of a batch: first calls and later looks together."""
    found = {}
    for name, cell in cells.items():
        names, home = notebook(cell.first), os.getcwd()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.chdir(folder)
            with mode("data", cell.options, names) as report:
                execute(cell.train, names)
            os.chdir(home)
        found[name] = report.details["check forwards"] / max(report.details["checks"], 1)
    torch.set_default_dtype(torch.float32)
    return found


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Outcome]]:
    return run_ranks(2, run_all, CELLS, "data", {}, backend=BACKEND, timeout=150)


@pytest.mark.parametrize("name", CELLS)
def test_equal_to_one_process_and_quickly_seen(outcomes: list[dict[str, Any]], name: str) -> None:
    for rank, every in enumerate(outcomes):
        outcome = every[name]
        assert outcome.equal(1e-12), f"rank {rank}: {outcome}"
        assert outcome.details["calls"]["M"].get("split"), outcome.lines
        assert outcome.details["checks"] == 1
        assert outcome.details["check forwards"] <= 1, outcome.details


def test_checks_of_the_zoo_cost_at_most_a_forward() -> None:
    for found in run_ranks(2, forwards, large(), backend=BACKEND, timeout=150):
        assert len(found) > 100
        assert {name: rows for name, rows in found.items() if rows > 1} == {}
