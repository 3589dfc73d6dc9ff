"""docs/equality.md: programs × modes, and how far each is from one process. `python -m tools.equality`, some minutes.

The programs are those of tests/data/zoo.py and tests/model/zoo.py, in float64. Each column is one launch of ranks, kept in
build/equality, so that a run that was cut off goes on; `--fresh` begins anew.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tempfile
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
in an error, and leaves no wrong number.
"""


@dataclass(frozen=True)
class Column:
    title: str
    ranks: int
    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)


BOUND = 10.0  # times a program's own tolerance, which is that of two ranks under `data`: more than that is no rounding
COLUMNS = (
    Column("data, 2 ranks", 2, "data"),
    Column("data, 3 ranks", 3, "data"),
    Column("model, 2 ranks", 2, "model"),
    Column("model --micro 4, 2 ranks", 2, "model", {"micro": "4"}),
    Column("model --how tensor, 2 ranks", 2, "model", {"how": "tensor"}),
    Column("hybrid --mesh 2x2, 4 ranks", 4, "hybrid", {"mesh": "2x2"}),
)


# ---- on the ranks ---------------------------------------------------------------------------------------------------------


def programs() -> dict[str, Any]:
    """Cells by name."""
    from tests.data import zoo
    from tests.model import zoo as layered

    dropless = {f"{name}, without dropout": case for name, case in layered.MICRO.items() if case != layered.ZOO[name]}
    cells = {
        name: zoo.Cell(name, layered.IMPORTS.strip() + "\n" + setup, train)
        for name, (setup, train) in {**{f"{name} (layers)": case for name, case in layered.ZOO.items()}, **dropless}.items()
    }
    own = {name: cell for name, cell in zoo.CELLS.items() if not name.startswith("style: ")}
    return {**cells, **{name: cell for name, cell in own.items() if set(cell.options) <= {"batch", "batch_dim"}}}


def measure(mode: str, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """On a rank: every program, whatever becomes of the others."""
    from tests.model.harness import Bell

    return {name: one(cell, mode, options, Bell) for name, cell in programs().items()}


def one(cell: Any, name: str, options: dict[str, Any], bells: Any) -> dict[str, Any]:
    """difference and where, remarks, or why there is none."""
    import warnings

    import torch

    from nbpar.errors import OptionError, Unsupported
    from nbpar.parallel import mode
    from nbpar.parallel.data.batch import Binder
    from tests.data.compare import compare, execute, left

    warnings.filterwarnings("ignore")
    home, dtype = os.getcwd(), torch.get_default_dtype()
    rows = cell.options if name in ("data", "hybrid") else {}
    inner = {"checked": True} if name in ("model", "hybrid") else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            alone: dict[str, Any] = {"__name__": "__main__"}
            execute(cell.first, alone)
            printed = execute(cell.train, alone)
            expected = left(alone, cell.ignore)
            together: dict[str, Any] = {"__name__": "__main__"}
            execute(cell.first, together)
            train = ast.unparse(Binder(rows["batch"]).visit(ast.parse(cell.train))) if rows.get("batch") else cell.train
            with bells() as bell:
                asked = {**inner, **({"failed": bell.ring} if inner else {}), **rows, **options}
                try:
                    with mode(name, asked, together) as report:
                        text = execute(train, together)
                except BaseException as error:
                    bell.ring(error)
                    raise
            largest, at = compare(expected, left(together, cell.ignore))
            at = at if text == printed else "printed text"
            lines = [line for line in report.lines if not line.startswith("layers by rank")]
            bound = BOUND * cell.tolerance
            return {"difference": largest, "equal": largest <= bound and text == printed, "at": at, "lines": lines}
        except OptionError as error:
            return {"missing": str(error)}
        except Unsupported as error:
            return {"refused": str(error)}
        except BaseException as error:
            return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        finally:
            os.chdir(home)
            torch.set_default_dtype(dtype)


# ---- the page -------------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    if "--fresh" in arguments:
        shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page({column.title: kept(column) for column in COLUMNS}), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


def kept(column: Column) -> dict[str, Any]:
    """By program, the worst of the ranks; {"": reason} if the launch failed."""
    from tests.ranks import run_ranks

    file = KEPT / f"{re.sub('[^a-z0-9]+', '-', column.title)}.json"
    if not file.exists():
        print(f"{column.title} …", file=sys.stderr)
        try:
            ranks = run_ranks(column.ranks, _measure, column.mode, dict(column.options), timeout=560)
            result = {name: max((rank[name] for rank in ranks), key=severity) for name in ranks[0]}
        except RuntimeError as error:
            return {"": str(error).splitlines()[-1][:200]}
        file.write_text(json.dumps(result), encoding="utf-8")
    result = json.loads(file.read_text(encoding="utf-8"))
    return dict(result)


def _measure(*arguments: Any) -> Any:
    """`measure`, under the module's name also where this file is the program."""
    return measure(*arguments)


_measure.__module__ = "tools.equality"


def severity(outcome: dict[str, Any]) -> tuple[bool, bool, float]:
    return "failed" in outcome, not outcome.get("equal", True), outcome.get("difference", 0.0)


def page(results: dict[str, dict[str, Any]]) -> str:
    """results: by column's title and program."""
    remarks: dict[str, int] = {}
    programs = list(dict.fromkeys(name for column in results.values() for name in column if name))
    rows = [[name, *(entry(column, name, remarks) for column in results.values())] for name in programs]
    lines = ["| " + " | ".join(line) + " |" for line in [["program", *results], ["---"] * (len(results) + 1), *rows]]
    worst = [f"- {title}: {summary(column)}" for title, column in results.items()]
    notes = [f"{number}. {text}" for text, number in remarks.items()]
    return "\n\n".join([HEAD.strip(), "\n".join(worst), "\n".join(lines), "## Remarks", "\n".join(notes) or "None."]) + "\n"


def entry(column: dict[str, Any], name: str, remarks: dict[str, int]) -> str:
    if "" in column:
        return "not measured" + mark([column[""]], remarks)
    outcome = column[name]
    if "missing" in outcome:
        return "not built" + mark([outcome["missing"]], remarks)
    for word in ("refused", "failed"):
        if word in outcome:
            return word + mark([outcome[word]], remarks)
    if not outcome["equal"]:
        return f"**{outcome['difference']:.0e}**" + mark([f"not equal: {outcome['at']}", *outcome["lines"]], remarks)
    return f"{outcome['difference']:.0e}".replace("0e+00", "0") + mark(outcome["lines"], remarks)


def mark(texts: list[str], remarks: dict[str, int]) -> str:
    """ " [3, 4]": the numbers of remarks; a new one is added."""
    clean = [re.sub(r"[<>|]", "·", " ".join(text.split()))[:300] for text in texts]
    return f" [{', '.join(str(remarks.setdefault(text, len(remarks) + 1)) for text in clean)}]" if clean else ""


def summary(column: dict[str, Any]) -> str:
    """How many programs are equal to how much, refused, failed."""
    if "" in column:
        return "not measured"
    outcomes = list(column.values())
    equal = {name: o["difference"] for name, o in column.items() if o.get("equal")}
    exact = [figure for name, figure in equal.items() if "bfloat16" not in name]
    parts = [f"{len(equal)} of {len(outcomes)} programs equal, in float64 to {max(exact):.0e}"] if exact else []
    return "; ".join([*parts, *others(outcomes)])


def others(outcomes: list[dict[str, Any]]) -> Iterator[str]:
    for word, text in (("refused", "refused"), ("missing", "not built"), ("failed", "failed")):
        if count := sum(word in outcome for outcome in outcomes):
            yield f"{count} {text}"
    if wrong := sum(not o.get("equal", True) for o in outcomes):
        yield f"**{wrong} not equal**"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
