"""Programs of many kinds, written as people write them, give in every mode what one process gives.

Each file of tests/programs is a notebook of two cells, the second of which runs under the mode.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cells import Cell
from tests.modes import tried

FOLDER = Path(__file__).parent / "programs"
CELLS = {file.stem: Cell(file.stem, *file.read_text().split("\n# %%\n")) for file in sorted(FOLDER.glob("*.py"))}
HERE = ["data", "model", "model --how tensor", "hybrid --mesh 2x2 --micro 2"]  # the others differ from these in little
SPLIT_LAYERS = ("model", "hybrid --mesh 2x2 --micro 2")


outcomes = tried(CELLS)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("mode", HERE)
def test_equal_to_one_process(mode: str, name: str) -> None:
    for rank, every in enumerate(outcomes(mode)):
        if name == "per_sample_gradients" and mode in SPLIT_LAYERS:
            assert "torch.func" in every[name].refused
        else:
            assert every[name].equal(1e-12, rounded=True), f"rank {rank}: {every[name]}"
