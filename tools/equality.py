"""docs/equality.md: programs × modes, and how far each is from one process. `python -m tools.equality`, some minutes.

The programs are those of tests/zoo.py, run and compared as the tests of the modes do it (tests/equal.py), in float64. Each column
is one launch of ranks. What it finds is kept in build/equality, so that a run that was cut off goes on; `--fresh` begins anew.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, KEPT = ROOT / "docs" / "equality.md", ROOT / "build" / "equality"

HEAD = """# How equal

<!-- Made by `python -m tools.equality`. -->

Each program below was run by one process and then, unchanged, under each mode. What it leaves was compared: weights, gradients,
buffers, optimiser state, losses, other variables, printed text and the random states of Python, NumPy and torch. A figure is
the largest difference in any number, in float64; 0 means equal to the last bit. A number in brackets stands for a remark below:
what nbpar says about the program (that a part of it runs whole, or in one piece), or why it refuses it. A refusal ends the cell
in an error, and leaves no wrong number. The programs are those that the tests run, in `tests/zoo.py`. Beside them the tests run
some hundred programs that are put together at random (`tests/random_programs.py`), most of them with a line that mixes rows.
"""


@dataclass(frozen=True)
class Column:
    """tolerance: the largest difference that is rounding."""

    title: str
    ranks: int
    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-12


COLUMNS = (
    Column("data, 2 ranks", 2, "data"),
    Column("data, 3 ranks", 3, "data"),
    Column("model, 2 ranks", 2, "model", tolerance=1e-13),
    Column("model, 3 ranks", 3, "model", tolerance=1e-13),
    Column("model --micro 4, 2 ranks", 2, "model", {"micro": "4"}),
    Column("model --how tensor, 2 ranks", 2, "model", {"how": "tensor"}),
    Column("hybrid --mesh 2x2, 4 ranks", 4, "hybrid", {"mesh": "2x2"}),
)


def measure(column: Column, cells: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By program, the worst of the ranks: difference, whether it is rounding, where, remarks; or why there is none."""
    from tests.equal import run_all
    from tests.ranks import run_ranks

    ranks = run_ranks(column.ranks, run_all, cells, column.mode, dict(column.options), timeout=1200)
    return {name: max((told(column, cell, rank[name]) for rank in ranks), key=severity) for name, cell in cells.items()}


def told(column: Column, cell: Any, outcome: Any) -> dict[str, Any]:
    from tests.equal import alike

    if outcome.refused:
        return {"refused": outcome.refused}
    if outcome.error:
        return {"failed": outcome.error.splitlines()[0]}
    bound = cell.tolerance if cell.why else column.tolerance
    same = alike(*outcome.printed, bound)
    lines = [line for line in outcome.lines if not line.startswith("layers by")]
    if cell.why and outcome.difference > column.tolerance:
        lines.append(cell.why)
    equal = outcome.difference <= bound and same
    return {"difference": outcome.difference, "equal": equal, "at": outcome.at if same else "printed text", "lines": lines}


def severity(outcome: dict[str, Any]) -> tuple[bool, bool, float]:
    return "failed" in outcome, not outcome.get("equal", True), outcome.get("difference", 0.0)


# ---- the page -------------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """1 if a program is neither equal nor refused."""
    sys.path.insert(0, str(ROOT))
    if "--fresh" in arguments:
        shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    results = {column.title: kept(column) for column in COLUMNS}
    PAGE.write_text(page(results), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return int(
        any("failed" in outcome or not outcome.get("equal", True) for column in results.values() for outcome in column.values())
    )


def kept(column: Column) -> dict[str, Any]:
    """By program what `measure` gives, or gave in an earlier run."""
    from tests.zoo import ZOO

    file = KEPT / f"{re.sub('[^a-z0-9]+', '-', column.title)}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if more := {name: cell for name, cell in ZOO.items() if name not in found}:
        print(f"{column.title}: {len(more)} programs …", file=sys.stderr)
        found |= measure(column, more)
        file.write_text(json.dumps(found), encoding="utf-8")
    return {name: found[name] for name in ZOO}


def page(results: dict[str, dict[str, Any]]) -> str:
    """results: by column's title and program."""
    remarks: dict[str, int] = {}
    names = list(next(iter(results.values())))
    styles = [name for name in names if name.startswith("style: ")]
    tables = [table(part, results, remarks) for part in ([name for name in names if name not in styles], styles)]
    worst = [f"- {title}: {summary(column)}" for title, column in results.items()]
    notes = [f"{number}. {text}" for text, number in remarks.items()]
    between = "## Small programs\n\nOne trait each, that naive splitting breaks."
    parts = [HEAD.strip(), "\n".join(worst), tables[0], between, tables[1], "## Remarks", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def table(names: list[str], results: dict[str, dict[str, Any]], remarks: dict[str, int]) -> str:
    rows = [[name.removeprefix("style: "), *(entry(column[name], remarks) for column in results.values())] for name in names]
    return "\n".join("| " + " | ".join(line) + " |" for line in [["program", *results], ["---"] * (len(results) + 1), *rows])


def entry(outcome: dict[str, Any], remarks: dict[str, int]) -> str:
    for word in ("refused", "failed"):
        if word in outcome:
            return word + mark([outcome[word]], remarks)
    if not outcome["equal"]:
        return f"**{outcome['difference']:.0e}**" + mark([f"not equal: {outcome['at']}", *outcome["lines"]], remarks)
    return f"{outcome['difference']:.0e}".replace("0e+00", "0") + mark(outcome["lines"], remarks)


def mark(texts: list[str], remarks: dict[str, int]) -> str:
    """ " [3, 4]": the numbers of remarks; a new one is added."""
    texts = [text for text in texts if not text.startswith("layers by")]
    clean = [re.sub(r"[<>|]", "·", " ".join(text.split()))[:300] for text in texts]
    return f" [{', '.join(str(remarks.setdefault(text, len(remarks) + 1)) for text in clean)}]" if clean else ""


def summary(column: dict[str, Any]) -> str:
    """How many programs are equal to how much, refused, failed."""
    outcomes = list(column.values())
    equal = {name: o["difference"] for name, o in column.items() if o.get("equal")}
    exact = [figure for name, figure in equal.items() if "bfloat16" not in name]
    return "; ".join([f"{len(equal)} of {len(outcomes)} programs equal, in float64 to {max(exact):.0e}", *others(outcomes)])


def others(outcomes: list[dict[str, Any]]) -> Iterator[str]:
    for word in ("refused", "failed"):
        if count := sum(word in outcome for outcome in outcomes):
            yield f"{count} {word}"
    if wrong := sum(not o.get("equal", True) for o in outcomes):
        yield f"**{wrong} not equal**"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
