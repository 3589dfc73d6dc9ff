"""The check of one cell, on one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbpar.check.compare import Verdict, compare
from nbpar.check.evidence import Witness
from nbpar.check.replay import replay
from nbpar.values.names import persons

if TYPE_CHECKING:
    from nbpar.ranks.outlet import Outlet
    from nbpar.ranks.shell import RankShell
    from nbpar.ranks.task import Task


class Check:
    """Of one cell, on one rank. All ranks look, for a value may be spread over them; rank 0 compares."""

    def __init__(self, task: Task, shell: RankShell, outlet: Outlet) -> None:
        self._task, self._shell, self._outlet = task, shell, outlet
        self._witness = self._new_witness()
        self._alone: Any = None

    def _new_witness(self) -> Witness:
        own = of_each_rank(self._task.mode, self._task.options)
        return Witness(self._task.check, lambda: persons(self._shell.user_ns), losses=own is None, without=own or frozenset())

    def replay(self) -> None:
        """On rank 0, before the cell: what one process makes of it."""
        task = self._task

        def cell() -> str | None:
            failure = self._shell.run(task.code, task.count)
            where = f" in line {failure.line}" if failure and failure.line else ""
            return f"raised {failure.kind}{where}: {failure.text}" if failure else None

        self._alone = replay(cell, self._new_witness(), self._outlet, task.code, self._shell.user_ns)

    @contextmanager
    def watching(self) -> Iterator[Witness]:
        """The cell runs inside this, and its mode around it."""
        with self._witness.watching():
            yield self._witness

    def verdict(self) -> Verdict | None:
        """On rank 0, after a cell that ended well."""
        here = self._witness.evidence
        return None if self._alone is None or here is None else compare(self._alone, here)


def of_each_rank(mode: str, options: Mapping[str, Any]) -> frozenset[str] | None:
    """Names of which, as asked, each rank has its own rows, where losses are of each rank's own rows too; else None."""
    if mode == "data" and (options.get("batch") or options.get("loss") == "local"):
        return frozenset(options.get("batch") or ())
    return None
