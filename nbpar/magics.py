"""%parallel and %%parallel."""

from __future__ import annotations

from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from traitlets import Unicode

from nbpar import options, ranks
from nbpar.display import show
from nbpar.display.closing import duration
from nbpar.display.stream import name_ranks
from nbpar.errors import OptionError
from nbpar.ranks.world import Settings


@magics_class
class ParallelMagics(Magics):
    """The magics of one notebook."""

    shell: InteractiveShell
    show = Unicode("", help="panels of cells that run for two seconds, as in `--show`").tag(config=True)

    @no_var_expand
    @cell_magic("parallel")  # type: ignore[arg-type]
    def parallel_cell(self, line: str, cell: str) -> Any:
        """Shown as `options.usage`. Raises OptionError, and what the cell raises."""
        mode, given = options.cell_line(line)
        size = given.pop("size", None)
        current = ranks.current()
        settings = None
        if size is not None and (current is None or current.size != size):
            settings = Settings(size=size) if current is None else current.resized(size)
            if current is not None:
                show.note(f"{current.size} ranks are replaced by {size}. {current.lost()}".rstrip())
        running = ranks.ensure(self.shell.user_ns, settings)
        for rank in given.get("on", ()):
            if rank >= running.size:
                raise OptionError(f"--on {rank}: the world has ranks 0 to {running.size - 1}.")
        if "show" not in given and self.show:
            given.update(show=options.panels(self.show), asked=False)
        return running.run(numbered(line, cell), mode, **given)

    def _plan(self, given: dict[str, Any]) -> None:
        from IPython.display import display

        from nbpar.plan.outline import of_notebook

        display(of_notebook(self.shell.user_ns, **given))

    def _config(self, given: dict[str, Any]) -> None:
        if "show" in given:
            self.show = ",".join(given["show"]) or "none"
        show.note(f"show={self.show or 'split,live'}")

    @no_var_expand
    @line_magic("parallel")  # type: ignore[arg-type]
    def parallel_line(self, line: str) -> None:
        """Shown as `options.usage`. Raises OptionError, LaunchError."""
        command, given = options.command_line(line)
        getattr(self, f"_{command}")(given)

    def _start(self, given: dict[str, Any]) -> None:
        if given.get("device") == "cuda" and "backend" not in given:
            given["backend"] = "nccl"
        current = ranks.current()
        lost = current.lost() if current else ""
        running = ranks.ensure(self.shell.user_ns, Settings(**given) if given else None)
        show.note(f"{describe(running)} {lost if running is not current else ''}".rstrip())

    def _where(self, _: dict[str, Any]) -> None:
        """Of all this person's ranks: a notebook whose cell runs cannot ask, another one can."""
        from nbpar import where

        where.main([])

    def _stop(self, _: dict[str, Any]) -> None:
        current = ranks.current()
        lost = current.lost() if current else ""
        ranks.stop()
        show.note(f"the ranks have ended; variables are in the notebook. {lost}".rstrip())

    def _restart(self, _: dict[str, Any]) -> None:
        current = ranks.current()
        lost = current.lost() if current else ""
        running = current.restart() if current else ranks.ensure(self.shell.user_ns)
        show.note(f"{describe(running)} {lost}".rstrip())

    def _status(self, _: dict[str, Any]) -> None:
        current = ranks.current()
        show.note(
            describe(current) if current else "no ranks run. The first %%parallel cell starts them, or `%parallel start -n N`."
        )


ParallelMagics.parallel_cell.__doc__ = ParallelMagics.parallel_line.__doc__ = options.usage()  # type: ignore[assignment]


def numbered(line: str, cell: str) -> str:
    """The cell below its magic as a comment, so that tracebacks name the lines that the notebook shows."""
    return cell if cell.lstrip().startswith("%%") else f"# %%parallel {line}\n{cell}"


def describe(running: Any) -> str:
    """'2 ranks on host (processes 12, 13), MPICH …, torch …, 1 thread each, started in 1.6 s.'"""
    facts = running.facts
    hosts: dict[str, list[int]] = {}
    for rank, host in enumerate(running.hosts):
        hosts.setdefault(host, []).append(rank)
    where = []
    for host, there in hosts.items():
        processes = ", ".join(str(running.pids[rank]) for rank in there)
        where.append(f"{host} ({f'ranks {name_ranks(there)}, ' if len(hosts) > 1 else ''}processes {processes})")
    threads, start = min(fact["threads"] for fact in facts), running.told()
    text = f"{running.size} ranks on {', '.join(where)}, {facts[0]['mpi']}, torch {facts[0]['torch']}"
    text += f", {threads} thread{'s' if threads > 1 else ''} each{f', started in {duration(start)}' if start else ''}."
    crowded = [host for host, there in hosts.items() if len(there) > facts[there[0]]["cores"]]
    if running.settings.device == "cpu" and crowded:
        cores = facts[hosts[crowded[0]][0]]["cores"]
        which = f" on {crowded[0]}" if len(hosts) > 1 else ""
        text += f" There are more ranks than cores ({cores}){which}: they take turns, so expect no speed-up."
    return text
