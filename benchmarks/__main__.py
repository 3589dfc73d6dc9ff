"""`python -m benchmarks [names…]`: measure, and print one table.

Every benchmark is a module of this package with `rows() -> list[Row]`, or with `report() -> str`, a table of its own.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
import traceback
from importlib.metadata import version

from benchmarks.harness import Row, cores, table

# Modules, in the table's order.
BENCHMARKS = (
    "start", "cell", "values", "prints", "comm", "signature", "data", "checks", "model", "tensor", "memory", "panels", "snapshots",
)  # fmt: skip
REPORTS = ("faults", "scale")  # modules whose `report()` is a table of its own; only if named


def measure(name: str) -> tuple[list[Row], bool]:
    """The rows of one benchmark, and whether it came to its end; a failure is printed and does not end the others."""
    start = time.perf_counter()
    print(f"{name} …", end=" ", flush=True, file=sys.stderr)
    try:
        rows, ended = importlib.import_module(f"benchmarks.{name}").rows(), True
    except Exception:
        traceback.print_exc()
        rows, ended = [], False
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return rows, ended


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="nbpar against its peers, in one run.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of: {', '.join(BENCHMARKS)} (all these, if none is given), {', '.join(REPORTS)}",
    )
    parser.add_argument("--report", action="store_true", help="write docs/comparison.md; goes on where a report was cut off")
    parser.add_argument("--fresh", action="store_true", help="with --report: measure anew what is kept from earlier")
    given = parser.parse_args()
    if given.report:
        return importlib.import_module("benchmarks.report").main(fresh=given.fresh)
    chosen = given.names or BENCHMARKS
    if wrong := [name for name in chosen if name not in BENCHMARKS + REPORTS]:
        parser.error(f"no benchmark {', '.join(wrong)}; there are {', '.join(BENCHMARKS + REPORTS)}")
    for name in REPORTS:
        if name in chosen:
            print(importlib.import_module(f"benchmarks.{name}").report())
    if not (chosen := [name for name in chosen if name not in REPORTS]):
        return 0

    before = cores()
    measured = [measure(name) for name in chosen]
    after = cores()
    print(f"\nPython {platform.python_version()}, torch {version('torch')}, mpi4py {version('mpi4py')},", end=" ")
    print(f"cores offered: {before:.2f} before, {after:.2f} after\n")
    print(table([row for rows, _ in measured for row in rows]))
    return 0 if all(ended for _, ended in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
