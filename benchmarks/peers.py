"""The same few things under nbpar and every peer, for docs/comparison.md: TOPICS by name, and what each costs in each tool.

A topic's function takes a tool and gives figures, or None where the tool has no such thing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import data, start, values
from benchmarks.faults import FAULTS, PATIENCE, SETUP, Fault, Seen, kernel_killed, suffer
from benchmarks.harness import RANKS, scratch
from benchmarks.notebooks import BY_GLOO, ENVIRONMENT, PEERS, Accelerate, Ipyparallel, JupyterDistributed, Nbpar, Notebook

RUNS = 3
CELLS, LAUNCHES = 60, 6  # empty cells; of a tool that starts its ranks for each
LINES = 5_000
STEPS, FIRST = 14, 4  # of a training step, and how many of these are not counted
WORKLOADS = {w.name: w for w in data.WORKLOADS if w.name in ("MLP, 8 MiB of gradients", "GPT, 10 M parameters")}
MEET = f"""import os
os.environ.update(RANK=str(comm.rank), WORLD_SIZE="{RANKS}", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
"""


class Torchrun:
    """A script on two ranks, without a notebook."""

    name = "a torchrun script"


Tool = type[Notebook] | type[Torchrun]
TOOLS: tuple[Tool, ...] = (Nbpar, *PEERS, Torchrun)


@dataclass(frozen=True)
class Topic:
    """unit: of the figures; None: a result that is no figure."""

    title: str
    unit: str | None
    measure: Callable[[Tool], object]


def script(code: str, folder: Path) -> subprocess.Popen[str]:
    """A script under torchrun, in a session of its own."""
    file = folder / "script.py"
    file.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", str(file)]
    env = {**os.environ, **ENVIRONMENT}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, text=True, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True)


def scripted(code: str) -> tuple[float, str]:
    """Seconds from its start to its end, and what it printed."""
    with scratch() as folder:
        began = time.perf_counter()
        text, _ = script(code, folder).communicate(timeout=120)
        return time.perf_counter() - began, text


def first(tool: Tool) -> list[float]:
    if issubclass(tool, Torchrun):
        return [scripted(f"{start.FIRST_CELL}")[0] for _ in range(RUNS)]
    if tool is JupyterDistributed:
        return [with_kernel(tool) for _ in range(RUNS)]
    with tool() as notebook:
        return [start.first_result(notebook) for _ in range(RUNS)]


def with_kernel(tool: type[Notebook]) -> float:
    """Where the kernel is the ranks, its start is theirs."""
    began = time.perf_counter()
    with tool() as notebook:
        notebook.on_ranks(start.FIRST_CELL)
        return time.perf_counter() - began


def dispatch(tool: Tool) -> list[float] | None:
    if issubclass(tool, Torchrun):
        return None
    with tool() as notebook:
        notebook.connect()
        notebook.on_ranks("pass")
        return [notebook.on_ranks("pass")[0] * 1e3 for _ in range(LAUNCHES if tool is Accelerate else CELLS)]


def push(tool: Tool) -> list[float] | None:
    if tool not in (Nbpar, Ipyparallel, Accelerate) or issubclass(tool, Torchrun):
        return None
    with tool() as notebook:
        notebook.connect()
        if tool is not Accelerate:
            notebook.on_ranks("import torch")
        one = values.push_ipyparallel if tool is Ipyparallel else values.push
        return [one(notebook) for _ in range(RUNS)]


def pull(tool: Tool) -> list[float] | None:
    if tool not in (Nbpar, Ipyparallel) or issubclass(tool, Torchrun):
        return None
    with tool() as notebook:
        notebook.connect()
        notebook.on_ranks("import torch")
        one = values.pull_ipyparallel if tool is Ipyparallel else values.pull
        return [one(notebook) for _ in range(RUNS)]


def prints(tool: Tool) -> dict[str, object]:
    """Seconds for all lines, with a remark on those that were lost or mixed up with others."""
    cell = f"import os\nfor line in range({LINES}): print(f'rank {{rank}} line {{line}}')"
    if issubclass(tool, Torchrun):
        return counted([scripted(f"{BY_GLOO}{cell}") for _ in range(RUNS)])
    with tool() as notebook:
        notebook.connect()
        notebook.on_ranks(notebook.who + "total()")
        runs = [notebook.on_ranks(notebook.who + cell) for _ in range(RUNS)]
        return counted([(seconds, outputs.text) for seconds, outputs in runs])


def counted(runs: list[tuple[float, str]]) -> dict[str, object]:
    whole = [len(set(re.findall(r"rank (\d) line (\d+)(?=\s)", text))) for _, text in runs]
    lost = RANKS * LINES - min(whole)
    remark = f"up to {lost:,} of {RANKS * LINES:,} lines lost or mixed up" if lost else ""
    return {"figures": [seconds for seconds, _ in runs], "remark": remark}


def step(workload: data.Workload) -> Callable[[Tool], list[float]]:
    """ms of a step, as rank 0 measures it: the plain cell for nbpar, DistributedDataParallel over gloo for the others."""
    loop = f"""
opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
times = []
for _ in range({STEPS}):
    began = time.perf_counter()
    opt.zero_grad()
    loss = {workload.loss}
    loss.backward()
    opt.step()
    times.append(round((time.perf_counter() - began) * 1e3, 3))
print(f"STEPS {{times}}")
"""
    make = f"import time, torch\nimport torch.nn as nn, torch.nn.functional as F\ntorch.manual_seed(0)\n{workload.setup}"
    by_hand = f"""{BY_GLOO}torch.set_num_threads(1)
x, y = x.chunk({RANKS})[rank].contiguous(), y.chunk({RANKS})[rank].contiguous()
model = nn.parallel.DistributedDataParallel(model)
"""

    def measure(tool: Tool) -> list[float]:
        if issubclass(tool, Torchrun):
            return steps(scripted(make + by_hand + loop)[1])
        with tool() as notebook:
            notebook.connect()
            if tool is not Nbpar:
                before = notebook.who + MEET if tool is Ipyparallel else ""
                return steps(notebook.on_ranks(before + make + by_hand + loop)[1].text)
            notebook.run(make)
            return steps(notebook.run(f"%%parallel data\n{loop}")[1].text)

    return measure


def steps(text: str) -> list[float]:
    found = re.search(r"STEPS (\[.*?\])", text)
    assert found, text
    return list(json.loads(found[1])[FIRST:])


def faults(fault: Fault) -> Callable[[Tool], list[object]]:
    def measure(tool: Tool) -> list[object]:
        seen = suffer_script(fault) if issubclass(tool, Torchrun) else suffer(tool, fault)
        return [seen.seconds, seen.named, None if issubclass(tool, Torchrun) else seen.next_works]

    return measure


def suffer_script(fault: Fault) -> Seen:
    """A fault in a script: until it has ended."""
    with scratch() as folder:
        pids = folder / "pids"
        pids.mkdir()
        process = script(BY_GLOO + SETUP.format(folder=str(pids)) + fault.cell, folder)
        end = time.monotonic() + 60
        while len(list(pids.iterdir())) < RANKS and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1 if fault.act else 0.5)
        at = time.monotonic()
        if fault.name.startswith("SIGKILL"):
            os.kill(int((pids / "1").read_text()), signal.SIGKILL)
        elif fault.act:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        try:
            text, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Seen(None, False, False)
        return Seen(time.monotonic() - at, re.search(fault.named, text, re.IGNORECASE) is not None, False)


def orphans(tool: Tool) -> list[int] | None:
    return None if issubclass(tool, Torchrun) else [kernel_killed(tool)]


TOPICS = {
    "start": Topic("start of two ranks, to the first cell's result", "s", first),
    "dispatch": Topic("an empty cell, as the page sees it", "ms", dispatch),
    "push": Topic(f"a tensor of {values.MIB} MiB to both ranks", "s", push),
    "pull": Topic(f"a tensor of {values.MIB} MiB from each rank", "s", pull),
    "prints": Topic(f"{RANKS} × {LINES:,} printed lines", "s", prints),
    **{f"step{at}": Topic(f"training step: {name}", "ms", step(w)) for at, (name, w) in enumerate(WORKLOADS.items())},
    **{f"fault{at}": Topic(fault.name, None, faults(fault)) for at, fault in enumerate(FAULTS)},
    "orphans": Topic("SIGKILL of the kernel: processes left after 5 s", None, orphans),
}
