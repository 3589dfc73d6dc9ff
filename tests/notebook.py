"""A real notebook kernel that runs real cells."""

from __future__ import annotations

import os
import queue
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

ANSI = re.compile(r"\x1b\[[0-9;]*m")
CLOSING = re.compile(r"\x1b\[2m\d+ ranks? · ")


@dataclass
class Cell:
    """What came of a cell. times: seconds from its sending to each piece of text; shown: MIME bundles, updates included."""

    status: str = ""
    stdout: str = ""
    stderr: str = ""
    error: str = ""
    traceback: str = ""
    seconds: float = 0.0
    shown: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    pieces: list[tuple[float, str]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What the cell printed, without nbpar's own remarks and closing line."""
        return [line for line in self.stdout.splitlines() if not line.startswith("nbpar: ") and not CLOSING.match(line)]

    @property
    def said(self) -> set[str]:
        """The lines without the ranks' marks: on a very busy machine equal lines may come too far apart to be joined."""
        return {re.sub(r"^\[[\d,-]+\] ", "", line) for line in self.lines}

    @property
    def notes(self) -> list[str]:
        return [line for line in self.stdout.splitlines() if line.startswith("nbpar: ")]

    @property
    def closing(self) -> str:
        """nbpar's line at the end of the cell."""
        return next((ANSI.sub("", line) for line in reversed(self.stdout.splitlines()) if CLOSING.match(line)), "")


class Notebook:
    """Use as a context manager. `run` raises AssertionError when the cell fails, unless `fails` says that it may.

    kernel: an installed kernelspec; without one, ipykernel's kernel in which the extension is then loaded.
    within: the beginning of a command line that runs that kernel elsewhere, on this file system.
    """

    def __init__(self, *, extension: bool = True, kernel: str = "", within: Sequence[str] = (), **start: Any) -> None:
        self._extension, self._kernel, self._start = extension and not kernel, kernel, start
        self._within = within
        self._cells: dict[str, Cell] = {}  # of sent cells: what came of them so far

    def __enter__(self) -> Notebook:
        self.manager = KernelManager(kernel_name=self._kernel or "python3")
        if self._within:
            self.manager.transport, self.manager.ip = "ipc", tempfile.mkdtemp(prefix="nbpar-test-") + "/kernel"
        if not self._kernel:
            argv = [*self._within, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            self.manager._kernel_spec = KernelSpec(argv=argv, display_name="test", language="python")
        self.manager.start_kernel(**self._start)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        if self._extension:
            self.run("%load_ext nbpar\nimport nbpar")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        if self.manager.is_alive():
            self.manager.shutdown_kernel(now=False)
        if self._within:
            shutil.rmtree(os.path.dirname(self.manager.ip))

    def send(self, code: str) -> str:
        self._sent = time.perf_counter()
        message = self.client.execute(code)
        self._cells[message] = Cell()
        return message

    def send_until(self, code: str, printed: str = "begun", timeout: float = 60) -> str:
        """A cell that is sent, up to the time when it has printed that. The ranks that have not done so have a moment more."""
        message = self.send(code)
        self._gather(message, timeout, printed)
        time.sleep(0.3)
        return message

    def collect(self, message: str, timeout: float = 120, *, reply: bool = True) -> Cell:
        """Outputs and reply of a cell that was sent."""
        self._gather(message, timeout)
        cell = self._cells.pop(message)
        cell.seconds = time.perf_counter() - self._sent
        while reply and not cell.status:
            answer = self.client.get_shell_msg(timeout=10)
            if answer["parent_header"].get("msg_id") == message:
                cell.status = answer["content"]["status"]
        return cell

    def _gather(self, message: str, timeout: float, printed: str = "") -> None:
        """What comes of a sent cell until it has printed that; without it, until it ends."""
        cell, end = self._cells[message], time.monotonic() + timeout
        while not printed or printed not in cell.stdout:
            if (left := end - time.monotonic()) <= 0:
                raise AssertionError(f"the cell ran past {timeout} s; so far: {cell}")
            try:
                answer = self.client.get_iopub_msg(timeout=min(left, 1))
            except queue.Empty:
                continue
            if answer["parent_header"].get("msg_id") != message:
                continue
            kind, content = answer["msg_type"], answer["content"]
            at = time.perf_counter() - self._sent
            if kind == "stream":
                setattr(cell, content["name"], getattr(cell, content["name"]) + content["text"])
                cell.pieces.append((at, content["text"]))
            elif kind in ("display_data", "update_display_data"):
                cell.shown.append(content["data"])
            elif kind == "execute_result":
                cell.result = content["data"]
            elif kind == "error":
                cell.error, cell.traceback = content["ename"], ANSI.sub("", "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                assert not printed, f"the cell ended without {printed!r}: {cell}"
                return

    def debug(self, *commands: str) -> str:
        """What `%debug` says to these commands."""
        message, left, said = self.client.execute("%debug", allow_stdin=True), [*commands, "q"], ""
        while True:
            for get in (self.client.get_stdin_msg, self.client.get_iopub_msg):
                try:
                    answer = get(timeout=0.02)
                except queue.Empty:
                    continue
                if answer["parent_header"].get("msg_id") != message:
                    continue
                if answer["msg_type"] == "input_request":
                    self.client.input(left.pop(0))
                said += answer["content"].get("text", "")
                if answer["content"].get("execution_state") == "idle":
                    return ANSI.sub("", said)

    def replied(self, message: str) -> bool:
        """Whether the kernel has replied to a cell whose outputs were collected."""
        try:
            while (answer := self.client.get_shell_msg(timeout=1))["parent_header"].get("msg_id") != message:
                pass
        except queue.Empty:
            return False
        return answer["msg_type"] == "execute_reply"

    def run(self, code: str, *, fails: bool = False, timeout: float = 120) -> Cell:
        cell = self.collect(self.send(code), timeout)
        assert fails or cell.status == "ok", f"{cell.traceback}\n{cell.stdout}\n{cell.stderr}"
        return cell

    def value(self, expression: str) -> Any:
        """An expression's value, by way of its repr."""
        import ast

        return ast.literal_eval(self.run(f"print(repr({expression}))").stdout)

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()
