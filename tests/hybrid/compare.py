"""Run a cell's text plainly and under mode `hybrid`, on every rank, and say how far the two are apart."""

from __future__ import annotations

import ast
import contextlib
import io
import traceback
import warnings
from typing import Any

import torch

from nbpar.errors import Unsupported
from nbpar.parallel import mode
from nbpar.parallel.data.batch import Binder
from nbpar.parallel.model.session import random_digest
from tests.model.harness import Bell, Outcome, compared, distance, notebook, plain, tensors


def compare(setup: str, cell: str, options: dict[str, Any], ignore: tuple[str, ...] = ()) -> Outcome:
    """The plain run is made on every rank, so that each compares its own. Float64 throughout."""
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore")
    outcome = Outcome()
    expected, text = plain(setup, cell)
    facts = {name: value.detach().clone() for name, value in tensors(expected).items()}
    stream = random_digest()
    names = notebook(setup)
    if options.get("batch"):  # which the shell of a rank does itself
        cell = ast.unparse(Binder(options["batch"]).visit(ast.parse(cell)))
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), Bell() as bell, compared():
            with mode("hybrid", {"failed": bell.ring, **options}, names) as report:
                exec(compile(cell, "<cell>", "exec"), names)
    except Unsupported as error:
        outcome.refused = str(error)
        return outcome
    except BaseException as error:
        outcome.error = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return outcome
    outcome.random = random_digest() == stream
    outcome.shown, outcome.text = f"{text}---\n{out.getvalue()}", out.getvalue() == text
    got = tensors(names)
    left = {name for name in facts.keys() | got.keys() if name.split("[")[0].split(".")[0] not in ignore}
    outcome.keys = left <= got.keys() and left <= facts.keys()
    outcome.difference = 0.0
    for name in left & facts.keys() & got.keys():
        gap = distance(facts[name], got[name])
        if gap > outcome.difference:
            outcome.difference, outcome.worst = gap, name
    outcome.lines, outcome.details = report.lines, report.details
    return outcome


def run_all(cases: dict[str, tuple[Any, ...]], options: dict[str, Any]) -> dict[str, Outcome]:
    """Every case (setup, cell, options, names that are not compared), on every rank."""
    return {name: compare(setup, cell, {**options, **own}, *ignore) for name, (setup, cell, own, *ignore) in cases.items()}
