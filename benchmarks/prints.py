"""Two ranks print 20,000 lines each: how long until the last is in the notebook, and whether any is lost."""

from __future__ import annotations

import re

from benchmarks.harness import RANKS, Row, alternate
from benchmarks.notebooks import Ipyparallel, Nbpar, Notebook

LINES = 20_000
RUNS = 3
CELL = f"for line in range({LINES}):\n    print(f'rank {{me}} line {{line}}')"


def rows() -> list[Row]:
    lost: dict[str, list[float]] = {Nbpar.name: [], Ipyparallel.name: []}
    with Nbpar() as ours, Ipyparallel() as theirs:
        ours.connect()
        theirs.connect()
        theirs.run("view.scatter('me', range(2), flatten=True, block=True)")
        programs = {ours: f"import nbpar\nme = nbpar.rank()\n{CELL}", theirs: CELL}

        def printed(notebook: Notebook) -> float:
            seconds, outputs = notebook.on_ranks(programs[notebook])
            seen = set(re.findall(r"rank (\d) line (\d+)", outputs.text))
            lost[notebook.name].append(RANKS * LINES - len(seen))
            return seconds

        figures = alternate(RUNS, lambda: printed(ours), lambda: printed(theirs))
    return [
        Row(f"prints: {RANKS} × {LINES:,} lines", figures[0], Ipyparallel.name, figures[1], "s"),
        Row("prints: lines lost", lost[Nbpar.name], Ipyparallel.name, lost[Ipyparallel.name], "lines", "≤ 0"),
    ]
