"""docs/python.md from docstrings: `python -m tools.python`. A test compares the two."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import nbpar
from nbpar import errors
from nbpar.plan.plan import Plan, make
from nbpar.ranks.world import World
from nbpar.record import Last

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
FUNCTIONS = {
    "nbpar.world": nbpar.world,
    "nbpar.last": nbpar.last,
    "nbpar.plan": make,
    "nbpar.gather": nbpar.gather,
    "nbpar.save": nbpar.save,
    "nbpar.load": nbpar.load,
}
IN_CELLS = {"nbpar.rank": nbpar.rank, "nbpar.size": nbpar.size, "nbpar.split": nbpar.split}
# What they return, with those members that are for everybody.
CLASSES: dict[type, tuple[str, ...]] = {
    World: ("size", "pids", "hosts", "running", "run", "start", "stop", "restart"),
    nbpar.RankValues: ("ranks", "sum", "mean", "cat"),
    nbpar.RankRef: ("gather", "eval", "train", "state_dict"),
    Last: ("plan", "prediction", "check", "figures", "calls", "spans", "matrix", "output", "timeline", "panels", "export_trace"),
    Plan: ("layers", "rows", "ranks_of", "memory", "sent", "spans", "waiting", "notes"),
}


def page() -> str:
    """The whole page."""
    tree = "\n".join(line for line in (errors.__doc__ or "").splitlines() if re.search("[├└│]|Nbpar", line))
    parts = [
        "# From Python",
        "<!-- Made by `python -m tools.python` from the docstrings. -->",
        "What the magics do is there for programs, too. `import nbpar` loads nothing heavy.",
        "## In the notebook",
        *(entry(name, function) for name, function in FUNCTIONS.items()),
        "## In a cell, on the ranks",
        *(entry(name, function) for name, function in IN_CELLS.items()),
        *(part for kind, members in CLASSES.items() for part in described(kind, members)),
        "## Errors",
        inspect.cleandoc(errors.__doc__ or "").splitlines()[0] + " They are in `nbpar.errors`:",
        f"```text\n{inspect.cleandoc(tree)}\n```",
        (errors.__doc__ or "").strip().splitlines()[-1],
    ]
    return "\n\n".join(parts) + "\n"


def described(kind: type, members: tuple[str, ...]) -> Iterator[str]:
    yield f"## {kind.__name__}"
    yield text(kind)
    for name in members:
        member = inspect.getattr_static(kind, name, None)
        if member is not None:
            yield entry(f".{name}", member)


def entry(name: str, what: Any) -> str:
    if isinstance(what, cached_property | property):
        return f"### `{name}`\n\n{text(what.func if isinstance(what, cached_property) else what.fget)}"
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(what).parameters.values() if p.name != "self"]
    signature = str(inspect.Signature(parameters))
    return f"### `{name}{signature}`\n\n{text(what)}"


def text(what: Any) -> str:
    """A docstring as Markdown: names of parameters at the start of a sentence stay as they are."""
    return (inspect.getdoc(what) or "").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
