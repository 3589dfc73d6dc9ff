"""What a cell costs that does nothing: the round trip through the kernel to two ranks and back."""

from __future__ import annotations

from benchmarks.harness import Kernel, Row
from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

CELLS = 60
ROUNDS = 3


def rows() -> list[Row]:
    with Nbpar() as ours, Ipyparallel() as theirs:
        bare = [kernel_alone(ours) for _ in range(CELLS)]
        ours.connect()
        theirs.connect()
        empty(ours), empty(theirs)
        figures: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for notebook, its in zip((ours, theirs), figures, strict=True):
                its += [empty(notebook) for _ in range(CELLS)]
    return [
        Row("empty cell", figures[0], Ipyparallel.name, figures[1], "ms", "≥ 3×"),
        Row("empty cell over a kernel's own", figures[0], "`pass` in the kernel", bare, "ms"),
    ]


def empty(notebook: Notebook) -> float:
    return notebook.on_ranks("pass")[0] * 1e3


def kernel_alone(kernel: Kernel) -> float:
    return kernel.run("pass")[0] * 1e3
