"""Panels of real cells, by way of a real kernel: when they appear, what they end as, and figures against independent counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.notebook import Notebook

WIDGET = "application/vnd.jupyter.widget-view+json"
SETUP = """
import torch, time, torch.distributed as dist
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
opt = torch.optim.SGD(model.parameters(), lr=.1)
X, y = torch.randn(12, 20), torch.randint(5, (12,))
"""
TRAIN = """
for step in range(4):
    opt.zero_grad(); loss = torch.nn.functional.cross_entropy(model(X), y); loss.backward(); opt.step()
"""
ASLEEP = """
import threading
asleep = next(thread for thread in threading.enumerate() if thread.name == "nbpar-io").progress.pause is None
"""


def test_a_short_cell_shows_its_closing_line_only(notebook: Notebook) -> None:
    notebook.run(SETUP)
    cell = notebook.run("%%parallel data\n" + TRAIN)
    assert cell.shown == [] and re.search(r" · checks of first calls [\d.]+ m?s", cell.closing)


def test_a_long_cell_shows_panels_and_their_end(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel\nfor k in range(25):\n    time.sleep(.1)\nprint('over')")
    panels = [bundle for bundle in cell.shown if WIDGET in bundle]
    assert len(panels) == 2
    assert "✓ done 25/25" in panels[-1]["text/plain"]
    assert panels[-1]["text/html"].count(">over<") == 2
    assert cell.lines == ["over"]


def test_quiet_shows_nothing_and_watches_nothing(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel --quiet\ntime.sleep(2.5)\nwatched = torch.nn.Module.__call__.__qualname__\n" + ASLEEP)
    assert cell.shown == []
    assert cell.stdout == ""
    assert notebook.value("watched") == "Module._wrapped_call_impl"
    assert notebook.value("asleep") is True
    assert notebook.value("(nbpar.last().live, nbpar.last().record.replies[0].pulse)") == (None, None)


def test_panels_that_are_asked_for_appear_in_short_cells(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel data --show split,timeline,aggregation\n" + TRAIN)
    text = [bundle for bundle in cell.shown if WIDGET in bundle][-1]["text/plain"]
    assert "Who holds which layer: 2 layers, 785 parameters; each of 2 ranks has a replica" in text
    assert "What each rank did when (measured): steps 2–4 of 4" in text
    assert "Whose bytes went into whose results (measured)" in text
    assert re.search(r"wait \d+% \(measured\)", text)


def test_a_value_of_each_rank_leads_to_no_model(notebook: Notebook) -> None:
    """The notebook's stand-in for such values knows its world, and that knows everything."""
    notebook.run(SETUP)
    notebook.run("%%parallel\nmine = dist.get_rank()")
    notebook.run("%%parallel data\nprint(mine)")
    assert notebook.value("nbpar.last().plan") is None


def test_figures_are_those_of_the_trace_and_of_a_count_by_hand(notebook: Notebook) -> None:
    code = """%%parallel --show aggregation
for _ in range(3):
    dist.all_reduce(torch.zeros(1000))
dist.broadcast(torch.zeros(250, dtype=torch.float64), 1)
if nbpar.rank() == 0:
    dist.send(torch.zeros(10, 10), 1)
else:
    dist.recv(torch.zeros(10, 10), 0)
"""
    cell = notebook.run(code)
    there, back = 3 * 4000 + 400, 3 * 4000 + 2000
    assert notebook.value("nbpar.last().matrix.values.tolist()") == [[0.0, float(there)], [float(back), 0.0]]
    assert notebook.value("nbpar.last().figures['bytes']") == there + back
    assert notebook.value("int(nbpar.last().calls.bytes.sum())") == there + back
    text = [bundle for bundle in cell.shown if WIDGET in bundle][-1]["text/plain"]
    assert "12.1 KiB" in text  # there
    assert "13.7 KiB" in text  # back
    assert "25.8 KiB handed over" in text
    assert "0 → 1" in text


def test_what_the_gradients_take_is_what_the_plan_says(notebook: Notebook) -> None:
    """Bytes that the trace saw, against the model's size: gradients in each step."""
    notebook.run("%%parallel data --batch X,y\nX, y = X, y\n" + TRAIN)
    seen = notebook.value(
        "sorted(set(nbpar.last().calls.query(\"dtype == 'float32' and operation == 'all_reduce'\").bytes.tolist()))"
    )
    assert 785 * 4 in seen


def test_shares_of_time_add_up(notebook: Notebook) -> None:
    notebook.run("%%parallel data\n" + TRAIN)
    figures = notebook.value("nbpar.last().figures")
    shares = [value for name, value in figures.items() if name.startswith("share_")]
    assert abs(sum(shares) - 1) < 1e-6
    assert figures["steps"] == 4
    counted = "(lambda s: float((s.end - s.start).sum()))(nbpar.last().spans.query(\"phase == 'wait'\"))"
    whole = "sum(reply.seconds for reply in nbpar.last().record.replies.values())"
    assert abs(notebook.value(f"{counted} / ({whole})") - figures["share_wait"]) < 0.02


def test_a_trace_file_has_the_ranks_phases(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run("%%parallel data\n" + TRAIN)
    notebook.run(f"nbpar.last().export_trace({str(tmp_path / 'trace.json')!r})")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    for rank in (0, 1):
        names = [event["name"] for event in events if event["tid"] == rank]
        assert names.count("update") == 4
        assert names.count("backward") >= 4


def test_a_failure_is_what_panels_end_with(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel --show live,output\nprint('before')\ntime.sleep(2.3)\n1 / (1 - nbpar.rank())", fails=True)
    assert cell.status == "error"
    text = [bundle for bundle in cell.shown if WIDGET in bundle][-1]["text/plain"]
    assert "! failed" in text
    assert "✓ done" in text


def test_config_keeps_a_choice(notebook: Notebook) -> None:
    assert "show=none" in notebook.run("%parallel config show=none").stdout
    assert notebook.run("%%parallel\ntime.sleep(2.4)").closing
    assert not [b for b in notebook.run("%%parallel\ntime.sleep(2.4)").shown if WIDGET in b]
    assert "show=split,live" in notebook.run("%parallel config show=split,live").stdout
    wrong = notebook.run("%parallel config show=splat", fails=True)
    assert "Did you mean 'split'" in wrong.traceback + wrong.stderr


def test_a_wrong_panel_says_which_there_are(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel --show timelin\npass", fails=True)
    assert "Did you mean 'timeline'" in cell.traceback + cell.stderr + cell.stdout


def test_a_plan_needs_no_ranks(notebook: Notebook) -> None:
    notebook.run("%parallel stop")
    cell = notebook.run("%parallel plan hybrid --mesh 2x2 --batch X")
    text = cell.shown[-1]["text/plain"]
    assert "The mesh 2x2" in text
    assert "12 rows" in text
    assert "Adam" not in text  # the notebook's own optimiser counts
    assert notebook.value("nbpar.world()") is None
    assert "has no model of that name" in "".join(
        (w := notebook.run("%parallel plan --model nix", fails=True)).traceback + w.stderr
    )


TERMINAL = """
from IPython.terminal.interactiveshell import TerminalInteractiveShell
shell = TerminalInteractiveShell.instance()
shell.run_line_magic("load_ext", "nbpar")
shell.run_cell({setup!r})
shell.run_cell_magic("parallel", "data -n 2 --show split,timeline", {train!r})
shell.run_line_magic("parallel", "stop")
"""


def test_a_terminal_shows_text() -> None:
    code = TERMINAL.format(setup=SETUP, train=TRAIN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "layer \\ rank" in done.stdout
    assert "rank 1       " in done.stdout
    assert re.search(r"^2 ranks · ", done.stdout, re.M)
