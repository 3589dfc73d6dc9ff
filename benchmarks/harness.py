"""What every benchmark shares: a row of the table, the cores the machine really offers, and a real kernel to drive.

A benchmark is a module with `rows() -> list[Row]`. Ours and its peer run in turn in the same minutes on the same
machine, so that the ratio means something where the single figures move with the machine.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2


@dataclass(frozen=True)
class Row:
    """One measurement of nbpar against one peer.

    ours, theirs: one figure a run, in `unit`; theirs may be empty where there is nothing to compare with.
    target: a condition that `Row.met` reads, on the ratio ("≥ 10×"; "≤ 1.3×": at most 1.3 times the peer's figure) or
    on ours ("≤ 256"); any other text is only printed.
    better: whether a lower or a higher figure is the better one.
    """

    name: str
    ours: list[float]
    peer: str
    theirs: list[float]
    unit: str
    target: str = ""
    better: Literal["lower", "higher"] = "lower"

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, median against median; above 1 nbpar is better. None without a peer."""
        if not self.theirs or not self.ours:
            return None
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        top, bottom = (theirs, ours) if self.better == "lower" else (ours, theirs)
        return top / bottom if bottom else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is no target, or it is only text."""
        sign, _, number = self.target.partition(" ")
        try:
            bound = float(number.removesuffix("×"))
        except ValueError:
            return None
        value = statistics.median(self.ours) if self.ours else None
        if number.endswith("×"):
            value = self.ratio and (1 / self.ratio if sign == "≤" else self.ratio)
        if value is None or sign not in ("≤", "≥"):
            return None
        return value <= bound if sign == "≤" else value >= bound


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: median [lowest – highest] of ours and of the peer, ratio, target, met or not."""
    head = ["what", "unit", "nbpar", "peer", "peer's figure", "ratio", "target", "met", "runs"]
    lines = [head] + [
        [
            row.name,
            row.unit,
            spread(row.ours),
            row.peer,
            spread(row.theirs),
            f"{row.ratio:.2f}×" if row.ratio is not None else "–",
            row.target or "–",
            {True: "yes", False: "NO", None: "–"}[row.met],
            f"{len(row.ours)}/{len(row.theirs)}",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def spread(figures: Sequence[float]) -> str:
    """ "7.4 [6.8 – 9.1]": the median and the range."""
    if not figures:
        return "–"
    if len(figures) == 1:
        return short(figures[0])
    return f"{short(statistics.median(figures))} [{short(min(figures))} – {short(max(figures))}]"


def short(figure: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def cores(most: int = RANKS, repeats: int = 3) -> float:
    """How many cores the machine offers right now: `most` busy processes against one, the median of `repeats`.

    A shared machine that shows two cores may give one and a half at the moment; a speed-up is read against this.
    """
    return statistics.median(most * _spin(1) / _spin(most) for _ in range(repeats))


def _spin(processes: int) -> float:
    """Seconds of the slowest of `processes` that each do the same arithmetic."""
    context = multiprocessing.get_context("spawn")
    times: Any = context.Queue()
    spinners = [context.Process(target=_spinner, args=(times,)) for _ in range(processes)]
    for spinner in spinners:
        spinner.start()
    slowest = max(times.get(timeout=60) for _ in spinners)
    for spinner in spinners:
        spinner.join()
    return slowest


def _spinner(times: Any) -> None:
    start, total = time.perf_counter(), 0
    for number in range(5_000_000):
        total += number * number
    times.put(time.perf_counter() - start)


class CellFailed(RuntimeError):
    """A cell of a benchmark raised; the text is the kernel's traceback."""


@dataclass
class Outputs:
    """What a cell sent back: all its text, its rich results and the moment (s after the send) of the first text."""

    text: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    first_text: float | None = None


class Kernel:
    """A real ipykernel of this interpreter, driven as a notebook's page drives it.

        with Kernel() as kernel:
            seconds, outputs = kernel.run("1 + 1")

    python: another interpreter's kernel, for a peer that lives in its own environment.
    """

    module = "ipykernel_launcher"  # which is the kernel
    interrupt_mode = "signal"

    def __init__(self, python: str = sys.executable, env: dict[str, str] | None = None, cwd: str | Path = ROOT) -> None:
        self.manager = KernelManager()
        self.manager._kernel_spec = KernelSpec(
            argv=[python, "-m", self.module, "-f", "{connection_file}", "--log-level=40"],
            display_name="benchmark",
            interrupt_mode=self.interrupt_mode,
        )
        self.env = dict(os.environ, PYTHONPATH=str(ROOT), **(env or {}))
        self.cwd = str(cwd)

    def __enter__(self) -> Kernel:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.manager.start_kernel(env=self.env, cwd=self.cwd)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    def run(self, cell: str, timeout: float = 300) -> tuple[float, Outputs]:
        """Seconds from sending a cell to its reply, and its outputs. Raises CellFailed with the traceback."""
        outputs = Outputs()
        start = time.perf_counter()

        def collect(message: dict[str, Any]) -> None:
            kind, content = message["msg_type"], message["content"]
            text = content["text"] if kind == "stream" else content.get("data", {}).get("text/plain", "")
            if kind == "stream" and outputs.first_text is None:
                outputs.first_text = time.perf_counter() - start
            if kind in ("execute_result", "display_data"):
                outputs.results.append(content["data"])
            outputs.text += text

        reply = self.client.execute_interactive(cell, timeout=timeout, output_hook=collect, store_history=True)
        seconds = time.perf_counter() - start
        if reply["content"]["status"] != "ok":
            raise CellFailed("\n".join(reply["content"].get("traceback", [])) or str(reply["content"]))
        return seconds, outputs

    def value(self, expression: str) -> Any:
        """The value of a literal expression (numbers, strings, lists) in the kernel."""
        asked = {"value": expression}
        reply = self.client.execute("pass", user_expressions=asked, reply=True, timeout=60)
        answer = reply["content"]["user_expressions"]["value"]
        if answer["status"] != "ok":
            raise CellFailed(f"{expression}: {answer.get('evalue')}")
        return ast.literal_eval(answer["data"]["text/plain"])


def alternate(runs: int, *programs: Callable[[], float]) -> list[list[float]]:
    """Run the programs in turn, `runs` times round, so that a slow minute hits them all. Figures by program."""
    figures: list[list[float]] = [[] for _ in programs]
    for _ in range(runs):
        for program, its in zip(programs, figures, strict=True):
            its.append(program())
    return figures


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of a benchmark's own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nbpar-bench-") as folder:
        yield Path(folder)
