"""From the command that starts two ranks to the first cell's result, with torch imported on the ranks."""

from __future__ import annotations

from benchmarks.harness import Row, alternate
from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

RUNS = 3
FIRST_CELL = "import torch\ntorch.ones(2).sum().item()"


def rows() -> list[Row]:
    with Nbpar() as ours, Ipyparallel() as theirs:
        figures = alternate(RUNS, lambda: first_result(ours), lambda: first_result(theirs))
    return [Row("start", figures[0], Ipyparallel.name, figures[1], "s", "≥ 2×")]


def first_result(notebook: Notebook) -> float:
    seconds = notebook.connect()
    seconds += notebook.on_ranks(FIRST_CELL)[0]
    notebook.disconnect()
    return seconds
