"""What a rank does with its share of a cell: `mode(name, options, namespace)` is entered around the cell on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from nbpar.errors import OptionError, suggest
from nbpar.parallel.report import Report

# A mode is a module with `mode(options, namespace, report)`, a context manager. Imported by ranks alone: it brings MPI.
MODES = {
    "each": "nbpar.parallel.each",
    "bare": "nbpar.parallel.each",  # nbpar's own cells, which know how to deal with what is spread over the ranks
    "data": "nbpar.parallel.data.mode",
    "model": "nbpar.parallel.model.mode",
    "hybrid": "nbpar.parallel.hybrid.mode",
}
LOCKSTEP = frozenset({"data", "model", "hybrid"})  # modes with the results of one process
KEEP = frozenset({"model"})  # modes that are told which variables stay, and say which others do


@contextmanager
def mode(name: str, options: Mapping[str, object], namespace: dict[str, Any]) -> Iterator[Report]:
    """While it lasts, the code run on this rank runs in this mode. Nothing of it is left behind, however the cell ends.

    namespace: the cell's global variables. Raises OptionError for an unknown mode or option.
    """
    if name not in MODES:
        raise OptionError(f"There is no mode {name!r}.{suggest(name, MODES)} Modes: {', '.join(MODES)}.")
    report = Report()
    with ExitStack() as stack:
        stack.enter_context(import_module(MODES[name]).mode(options, namespace, report))
        if name in LOCKSTEP:
            stack.enter_context(import_module("nbpar.parallel.alone").alone())
            stack.enter_context(import_module("nbpar.parallel.clocks").one_clock(namespace))
        yield report


__all__ = ["KEEP", "MODES", "Report", "mode"]
