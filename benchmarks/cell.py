"""What a cell costs that does nothing: in the kernel alone, and as the notebook's page sees it."""

from __future__ import annotations

from benchmarks.harness import Row
from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

CELLS = 60
ROUNDS = 3
IN_KERNEL = """
import time
def cost():
    start = time.perf_counter()
    get_ipython().run_cell_magic({magic!r}, "", "pass")
    return (time.perf_counter() - start) * 1e3
costs = [cost() for _ in range({cells})]
"""


def rows() -> list[Row]:
    with Nbpar() as ours, Ipyparallel() as theirs:
        for notebook in (ours, theirs):
            notebook.connect()
            in_kernel(notebook)
        kernel = [one for _ in range(ROUNDS) for one in zip(in_kernel(ours), in_kernel(theirs), strict=True)]
        page = [one for _ in range(ROUNDS) for one in zip(on_page(ours), on_page(theirs), strict=True)]
        bare = [ours.run("pass")[0] * 1e3 for _ in range(CELLS)]
    return [
        row("empty cell, in the kernel", kernel, "≥ 3×"),
        row("empty cell, as the page sees it", page),
        Row("empty cell, as the page sees it", [mine for mine, _ in page], "`pass` in the kernel", bare, "ms"),
    ]


def row(name: str, pairs: list[tuple[float, float]], target: str = "") -> Row:
    return Row(name, [mine for mine, _ in pairs], Ipyparallel.name, [its for _, its in pairs], "ms", target)


def on_page(notebook: Notebook) -> list[float]:
    """ms of each of some empty cells, from sending the cell to its reply."""
    return [notebook.on_ranks("pass")[0] * 1e3 for _ in range(CELLS)]


def in_kernel(notebook: Notebook) -> list[float]:
    """ms of each of some empty cells, by the kernel's own clock."""
    notebook.run(IN_KERNEL.format(magic=notebook.magic.lstrip("%"), cells=CELLS))
    return list(notebook.value("costs"))
