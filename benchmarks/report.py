"""docs/comparison.md: `python -m benchmarks --report`.

What was measured is kept in build/comparison, a file a topic and tool, so that a report that was cut off goes on; there too is the
page until it is whole. A figure that cannot be had is a line with the reason; nothing is filled in.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.harness import ROOT, cores, short, spread
from benchmarks.peers import PATIENCE, TOOLS, TOPICS, Tool, Topic

NOT_YET = "not measured yet"
KEPT = ROOT / "build" / "comparison"
PAGE = ROOT / "docs" / "comparison.md"
PACKAGES = ("torch", "mpi4py", "mpich", "ipyparallel", "accelerate", "jupyter-distributed", "ipykernel")

HEAD = """# Beside other tools

<!-- Made by `python -m benchmarks --report`. -->

How nbpar compares with other ways to run PyTorch code on several processes from a notebook, and with a script. Every figure is
of one run, in which the tools were measured one after the other on the same machine, with two ranks and one thread each:
median [lowest – highest]. *none* means that the tool has no such thing. Peers are driven as their documentation does it.
"""

# What cannot be measured. Each was looked up in the tools' own documentation and code.
FEATURES = """| | nbpar | ipyparallel | accelerate's notebook_launcher | jupyter-distributed | a torchrun script |
|---|---|---|---|---|---|
| a plain cell's batch is split, same result | yes | no | with changes to the cell | no | by hand |
| a plain cell's layers are split | yes | no | no | no | by hand |
| the notebook's variables on the ranks | by themselves | `push`, `scatter` | as of the fork | no | no |
| results in the notebook | by themselves | `pull`, `gather` | no: returns nothing | no | files |
| ranks live from cell to cell | yes | yes | no | yes | no |
| ordinary cells beside parallel ones | yes | yes | yes | no: every cell runs on all ranks | – |
| cells that do not block the notebook, task queues | no | yes | no | no | – |
| debugger over all ranks | no; `%debug` in the frames of one that failed | no | no | yes, in JupyterLab | by hand |
| output by rank | lines, equal ones once | after one another | mixed | a tab a rank, in its page | mixed |
| pictures of who holds what and who waits for whom | yes | no | no | no | no |
| needs MPI | yes, comes with it | optional | no | no | no |
| languages besides Python | no | no | no | other kernels | no |
| Windows | no | yes | not tried | not tried | yes |
| age | new | since 2011 | since 2021 | new | since 2021 |
"""

WORSE = """- nbpar is new and has been tried on few machines; ipyparallel and accelerate are used by many.
- It does not run cells in the background and has no task queue: ipyparallel has both.
- It has no debugger over running ranks: jupyter-distributed has one in JupyterLab.
- It needs MPI (the `mpich` package brings it) and does not run on Windows.
- A cell whose call cannot be split without changing the result gains nothing; a hand-written script may change the result."""


def main(*, fresh: bool = False) -> int:
    if fresh:
        shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    began = kept("machine", lambda: {**machine(), "before": cores()})
    results: dict[str, dict[str, Any]] = {name: {tool.name: NOT_YET for tool in TOOLS} for name in TOPICS}
    for name, topic in TOPICS.items():
        results[name] = {tool.name: measured(name, topic, tool) for tool in TOOLS}
        (KEPT / PAGE.name).write_text(page(results, {**began, "after": None}), encoding="utf-8")
    after = kept("machine-after", lambda: {"after": cores()})
    PAGE.write_text(page(results, {**began, **after}), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


def kept(key: str, make: Any) -> Any:
    """A result from its file, or made now and written there."""
    file = KEPT / f"{key}.json"
    if not file.exists():
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def measured(name: str, topic: Topic, tool: Tool) -> Any:
    """Figures, None where there is no such thing, or {"failed": reason}."""

    def make() -> Any:
        began = time.monotonic()
        print(f"{name}, {tool.name} …", end=" ", flush=True, file=sys.stderr)
        try:
            return topic.measure(tool)
        except Exception as error:
            return {"failed": (f"{type(error).__name__}: {error}".strip().splitlines() or ["?"])[-1][:200]}
        finally:
            print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)

    return kept(f"{name}-{tool.__name__}", make)


def machine() -> dict[str, Any]:
    return {"python": platform.python_version(), "packages": {name: installed(name) for name in PACKAGES}}


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


# ---- the page -------------------------------------------------------------------------------------------------------------


def page(results: dict[str, dict[str, Any]], facts: dict[str, Any]) -> str:
    """results: by topic and tool's name."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    parts = [
        HEAD.strip(),
        f"Python {facts['python']}, {packages}. Cores offered ([what that is](benchmarks.md)): {facts['before']:.2f} before, "
        f"{'?' if facts['after'] is None else format(facts['after'], '.2f')} after; without a GPU.",
        "## Time",
        table(["", *names()], [[f"{topic.title}, {topic.unit}", *map(figure, row(results, key))] for key, topic in timed()]),
        "A notebook_launcher starts its ranks for every cell by forking the kernel. The training step is the plain cell under "
        "nbpar and DistributedDataParallel over gloo, written by hand, under the others.",
        "## Faults",
        f"Until the kernel (or the terminal) has control again, whether the cause was named, and whether the next cell works; "
        f"at most {PATIENCE:.0f} s were waited for. jupyter-distributed was driven without its page, to which it sends the output "
        "of a running cell: what only that page would show counts as not named.",
        table(
            ["", *names()], [[topic.title, *map(fault, row(results, key))] for key, topic in TOPICS.items() if topic.unit is None]
        ),
        "## Features",
        FEATURES.strip(),
        "## What nbpar does worse",
        "\n".join([*slower(results), *WORSE.splitlines()]),
        *failed(results),
    ]
    return "\n\n".join(parts) + "\n"


def names() -> list[str]:
    return [tool.name for tool in TOOLS]


def timed() -> list[tuple[str, Topic]]:
    return [(key, topic) for key, topic in TOPICS.items() if topic.unit is not None]


def row(results: dict[str, dict[str, Any]], key: str) -> list[Any]:
    return [results[key][name] for name in names()]


def figure(value: Any) -> str:
    if isinstance(value, str):
        return value
    if (given := numbers(value)) is None:
        return "none" if value is None else "failed"
    remark = value["remark"] if isinstance(value, dict) else ""
    return spread(given) + (f"; {remark}" if remark else "")


def numbers(value: Any) -> list[float] | None:
    """The figures of a result, if it has some; a dict of figures has a remark besides."""
    found = value.get("figures") if isinstance(value, dict) else value
    return found if isinstance(found, list) else None


def fault(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict):
        return "–" if value is None else "failed"
    if len(value) == 1:
        return str(value[0])
    seconds, named, works = value
    words = f"not within {PATIENCE:.0f} s" if seconds is None else f"{seconds:.2f} s"
    following = "" if works is None else ", next cell works" if works else ", next cell does **not** work"
    return f"{words}, {'named' if named else '**not** named'}{following}"


def slower(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each figure in which some peer's median is better."""
    ours, *peers = names()
    for key, topic in timed():
        mine = numbers(results[key][ours])
        better = [
            f"{peer} {short(statistics.median(theirs))}"
            for peer in peers
            if (theirs := numbers(results[key][peer])) and mine
            and statistics.median(theirs) < statistics.median(mine)
        ]  # fmt: skip
        if better:
            yield f"- {topic.title}: {short(statistics.median(mine))} {topic.unit}; {', '.join(better)}."


def failed(results: dict[str, dict[str, Any]]) -> list[str]:
    """The reasons of what failed to be measured, as a section."""
    lines = [
        f"- {TOPICS[key].title}, {tool}: `{value['failed']}`"
        for key, by_tool in results.items()
        for tool, value in by_tool.items()
        if isinstance(value, dict) and "failed" in value
    ]
    return ["## What could not be measured", "\n".join(lines)] if lines else []


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])
