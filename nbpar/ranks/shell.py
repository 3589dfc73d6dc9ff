"""The IPython shell in which a rank runs cells: magics, shell lines, await, display and tracebacks as in the notebook."""

from __future__ import annotations

import builtins
import getpass
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

import cloudpickle
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from nbpar.comm import foreign
from nbpar.errors import PeerFailed, Unsupported
from nbpar.ranks import frames, postmortem
from nbpar.ranks.outlet import Outlet
from nbpar.ranks.task import Failure


class RankDisplayPublisher(DisplayPublisher):
    """display(...) on a rank: a message instead of text."""

    outlet: Outlet

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: str | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        bundle = {"data": data, "metadata": metadata or {}, "transient": transient or {}, "update": update}
        self.outlet.put("display", bundle)

    def clear_output(self, wait: bool = False) -> None:
        self.outlet.put("clear", {"wait": wait})


class RankDisplayHook(DisplayHook):
    """The value of a cell's last expression: formatted here, shown by the kernel."""

    shown: dict[str, Any] | None = None

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        self.shown = {"data": format_dict, "metadata": md_dict or {}}

    def update_user_ns(self, result: Any) -> None:
        """`_` is the newest result even where a cell has used that name (`for _ in …`): the cell's value is read from there."""
        super().update_user_ns(result)
        self.shell.user_ns["_"] = result  # type: ignore[union-attr]

    def finish_displayhook(self) -> None:
        pass


class RankShell(InteractiveShell):
    """One per rank. `failure` is how the last cell ended, if it did in an exception."""

    displayhook_class = RankDisplayHook
    display_pub_class = RankDisplayPublisher

    displayhook: RankDisplayHook
    display_pub: RankDisplayPublisher
    failure: Failure | None = None
    rank = 0

    def init_user_ns(self) -> None:
        super().init_user_ns()
        self.user_ns.pop("open", None)  # IPython's own, which goes past what a mode makes of Python's

    def _get_exc_info(self, exc_tuple: Any = None) -> Any:
        kind, value, tb = super()._get_exc_info(exc_tuple)
        if value is None:
            return kind, value, tb
        foreign.note_place(value, self.is_cell)
        frames.hide(value, ended=isinstance(value, (KeyboardInterrupt, PeerFailed)) or foreign.failed(value))
        if isinstance(value, KeyboardInterrupt) and value.__context__ is not None and foreign.failed(value.__context__):
            value.__suppress_context__ = True  # the wait that was ended for the interrupt
        sys.last_traceback = value.__traceback__  # what the hidden frames held may go
        return kind, value, value.__traceback__

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        self.failure = self._describe(etype, evalue, stb)

    def _describe(self, etype: type[BaseException], value: BaseException, stb: list[str]) -> Failure:
        module = "" if etype.__module__ == "builtins" else f"{etype.__module__}."
        try:
            pickled = cloudpickle.dumps(value)
        except Exception:
            pickled = None
        kind, wait = f"{module}{etype.__qualname__}", self._wait(value)
        found = None if wait else postmortem.taken(value, self.rank, self.is_cell)
        return Failure(kind, str(value), list(stb), self._cell_line(value), pickled, wait, found)

    def _wait(self, value: BaseException) -> str:
        """Where the rank waited for others, if this may tell that another rank failed."""
        if isinstance(value, PeerFailed):
            return value.wait or foreign.place(value, self.is_cell)
        return foreign.place(value, self.is_cell, "wait") if foreign.failed(value) else ""

    def failed(self, error: BaseException, stb: list[str] | None = None) -> Failure:
        """An exception that the shell has not seen, told as one that it has. stb: its traceback."""
        return self._describe(type(error), error, stb or [f"{type(error).__name__}: {error}"])

    def _cell_line(self, value: BaseException) -> int | None:
        if isinstance(value, SyntaxError):
            return value.lineno
        lines = traceback.extract_tb(value.__traceback__)
        return next((f.lineno for f in lines if self.is_cell(f.filename)), None)

    def is_cell(self, filename: str) -> bool:
        """Whether code of this file name was typed into a cell."""
        return filename in self.compile._filename_map

    def ask_exit(self) -> NoReturn:
        """`exit()` in a cell."""
        raise SystemExit

    def enable_gui(self, gui: str | None = None) -> None:
        """Ranks have no window: figures come as pictures."""

    def remember(self, sources: dict[str, tuple[int, str]]) -> None:
        """Earlier cells of the notebook, so that tracebacks through its functions show their lines."""
        import linecache

        for filename, (count, source) in sources.items():
            linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
            self.compile._filename_map[filename] = count

    def run(self, code: str, count: int) -> Failure | None:
        """Runs a cell as In[count]; None if it ended well."""
        self.failure = self.displayhook.shown = None
        self.execution_count = count
        result = self.run_cell(code, store_history=True)
        if not result.success and self.failure is None:  # an error that IPython shows without a traceback
            error = result.error_before_exec or result.error_in_exec
            self.failure = self.failed(error)
        return self.failure

    @property
    def shown(self) -> dict[str, Any] | None:
        """How the value of the last cell's last expression looks, if it shows one."""
        return self.displayhook.shown


def nobody(what: str) -> Callable[..., NoReturn]:
    """In the place of what waits for a person."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise Unsupported(f"{what}: nobody can type into a rank. Do it in a cell without %%parallel.")

    return refuse


def nested(line: str = "", cell: str | None = None) -> NoReturn:
    """`%parallel` and `%%parallel` within a parallel cell. Raises Unsupported."""
    magic = "%parallel" if cell is None else "%%parallel"
    raise Unsupported(f"{magic} {line}".rstrip() + ": this cell runs on the ranks already. Type that line in a cell of its own.")


def make_shell(outlet: Outlet, rank: int) -> RankShell:
    """The process's shell, its namespace the module `__main__`, so that notebook classes are found there."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    config = {"HistoryManager": {"enabled": False, "hist_file": ":memory:"}}
    from traitlets.config import Config

    shell = RankShell.instance(user_module=main, user_ns=main.__dict__, config=Config(config))
    shell.display_pub.outlet, shell.rank = outlet, rank
    shell.register_magic_function(nested, "line_cell", "parallel")  # type: ignore[arg-type]
    builtins.input, getpass.getpass = nobody("input()"), nobody("getpass()")
    sys.breakpointhook = nobody("breakpoint()")
    main.__dict__.setdefault("__builtins__", __builtins__)
    return shell
