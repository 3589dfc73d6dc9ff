"""Cells on two ranks, as a person at a notebook sees them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.notebook import Notebook

DIST = "import torch, torch.distributed as dist\n"


def test_a_cell_runs_on_every_rank_and_ends_with_a_line(notebook: Notebook) -> None:
    cell = notebook.run("%%parallel\nprint('hello from', nbpar.rank(), 'of', nbpar.size())")
    assert sorted(cell.lines) == ["[0] hello from 0 of 2", "[1] hello from 1 of 2"]
    assert re.match(r"2 ranks · [\d.]+ m?s", cell.closing)


def test_outside_a_world_helpers_are_identities(notebook: Notebook) -> None:
    assert notebook.value("(nbpar.rank(), nbpar.size(), nbpar.split(len)([1, 2]))") == (0, 1, 2)


def test_torch_distributed_is_there(notebook: Notebook) -> None:
    cell = notebook.run(f"%%parallel\n{DIST}x = torch.full((3,), dist.get_rank() + 1.)\ndist.all_reduce(x)\nprint(x.tolist())")
    assert cell.lines == ["[3.0, 3.0, 3.0]"]
    assert "1 collective, 24 B between ranks" in cell.closing


def test_on_picks_ranks(notebook: Notebook) -> None:
    assert notebook.run("%%parallel --on 1\nprint('rank', nbpar.rank())").lines == ["rank 1"]
    assert sorted(notebook.run("%%parallel each --on 0,1\nprint('rank', nbpar.rank())").lines) == ["[0] rank 0", "[1] rank 1"]


def test_the_world_is_an_object(notebook: Notebook) -> None:
    size, pids, hosts = notebook.value("(nbpar.world().size, nbpar.world().pids, nbpar.world().hosts)")
    assert size == 2 and len(set(pids)) == 2 and len(hosts) == 2
    assert notebook.run("nbpar.world().run('6 * 7')").result == {"text/plain": "42"}
    assert f"processes {pids[0]}, {pids[1]}" in notebook.run("%parallel status").stdout


def test_the_kernel_itself_begins_no_mpi(notebook: Notebook) -> None:
    """It would be a world of one process, with memory of its own, which stays in /dev/shm when the kernel is killed."""
    notebook.run("import torch\nnet = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)); X = torch.randn(6, 4)")
    for line in ("each", "data", "model", "model --how tensor", "hybrid --mesh 2x1", "data --check"):
        notebook.run(f"%%parallel {line} --show split,timeline,aggregation\nout = net(X).sum().item()")
        notebook.run("nbpar.last()")
    notebook.run("%parallel plan model -n 4")
    assert notebook.value("[name for name in __import__('sys').modules if name.startswith(('mpi4py', 'nbpar.comm'))]") == []


class TestLikeIPython:
    def test_last_expression(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nx = 20\nx + 1")
        assert cell.result == {"text/plain": "21"}
        assert notebook.value("_ + 1") == 22

    def test_semicolon_hides_it(self, notebook: Notebook) -> None:
        assert notebook.run("%%parallel\n1 + 1;").result is None
        notebook.run("%%parallel\nfor _ in range(5): pass")
        assert notebook.run("%%parallel\n1 + 1").result == {"text/plain": "2"}

    def test_last_expression_that_differs_shows_each_rank(self, notebook: Notebook) -> None:
        text = notebook.run("%%parallel\nnbpar.rank() * 10").result["text/plain"]  # type: ignore[index]
        assert "0" in text and "10" in text

    def test_shell_lines_magics_and_await(self, notebook: Notebook) -> None:
        code = "%%parallel\nimport asyncio\nwho = 'world'\n!echo hello $who\nawait asyncio.sleep(0)\n%time y = 3\nprint(y)"
        lines = notebook.run(code).stdout.splitlines()
        assert "hello world" in lines and "3" in lines

    def test_nested_cell_magic(self, notebook: Notebook) -> None:
        assert (
            "captured"
            in notebook.run("%%parallel\n%%capture text\nprint('captured')").stdout
            + notebook.run("text.stdout").result["text/plain"]
        )  # type: ignore[index]

    def test_rich_display_once_if_equal(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nfrom IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))")
        assert [b["text/html"] for b in cell.shown].count("<b>x</b>") == 1

    def test_figures_show(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
        assert sum("image/png" in bundle for bundle in cell.shown) == 1

    def test_data_frames_show(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nimport pandas\npandas.DataFrame({'a': [1, 2]})")
        assert cell.result and "<table" in cell.result["text/html"]


class TestExceptions:
    def test_alike_on_all_ranks_it_is_the_exception_itself(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nx = 1\nraise ValueError('alike')", fails=True)
        assert cell.error == "ValueError"
        assert "----> 3 raise ValueError('alike')" in cell.traceback and cell.traceback.count("alike'") == 1

    def test_it_can_be_caught(self, notebook: Notebook) -> None:
        code = "try:\n    nbpar.world().run('1 / 0')\nexcept ZeroDivisionError as error:\n    print('caught', error)"
        assert notebook.run(code).lines == ["caught division by zero"]

    def test_lines_of_functions_from_other_cells(self, notebook: Notebook) -> None:
        notebook.run("def culprit(x):\n    return 1 / x  # here it is")
        cell = notebook.run("%%parallel\nculprit(0)", fails=True)
        assert "here it is" in cell.traceback and "culprit(0)" in cell.traceback

    def test_on_one_rank_it_is_told_with_the_rank(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nif nbpar.rank() == 1:\n    raise ValueError('only here')", fails=True)
        assert cell.error == "CellError"
        assert "### rank 1 of 2" in cell.traceback and "ValueError: only here" in cell.traceback

    def test_syntax_errors(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nx = (1", fails=True)
        assert "SyntaxError" in cell.traceback and "line 2" in cell.traceback

    def test_what_a_failed_cell_did_alike_everywhere_is_kept(self, notebook: Notebook) -> None:
        notebook.run("log = []")
        notebook.run("%%parallel\nlog.append('before')\n1 / 0", fails=True)
        assert notebook.value("log") == ["before"]

    def test_what_only_one_rank_did_is_not(self, notebook: Notebook) -> None:
        notebook.run("log = []")
        cell = notebook.run("%%parallel\nlog.append('before')\nif nbpar.rank(): 1 / 0", fails=True)
        assert "as they were before" in cell.traceback
        assert notebook.value("log") == []


class TestOutput:
    def test_streams_and_c_level_writes_keep_their_order(self, notebook: Notebook) -> None:
        code = """%%parallel
import os, sys, ctypes
print('1 python')
os.write(1, b'2 system call\\n')
print('3 python')
ctypes.CDLL(None).puts(b'4 libc'); ctypes.CDLL(None).fflush(None)
sys.stdout.write('5 no newline yet, '); print('now')
print('  6 indented')
print('7 error', file=sys.stderr)"""
        cell = notebook.run(code)
        assert cell.lines == ["1 python", "2 system call", "3 python", "4 libc", "5 no newline yet, now", "  6 indented"]
        assert cell.stderr == "7 error\n"

    def test_forty_thousand_lines_none_lost(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nfor i in range(20_000):\n    print(f'    {nbpar.rank()} line {i}')")
        for rank in (0, 1):
            mine = [line for line in cell.lines if line.startswith(f"[{rank}] ")]
            assert mine == [f"[{rank}]     {rank} line {i}" for i in range(20_000)]

    def test_lines_come_while_the_cell_runs(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nimport time\nfor i in range(4):\n    print('tick', i)\n    time.sleep(0.4)")
        times = [at for at, text in cell.pieces if "tick" in text]
        assert len(times) == 4 and times[0] < 1.0 and times[3] < cell.seconds - 0.2

    def test_a_last_line_without_an_end(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nprint('no end', end='')")
        assert cell.lines == ["no end"] and cell.closing

    def test_long_lines_and_bytes_that_are_no_text(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel\nimport os\nprint('x' * (1 << 20))\nos.write(1, b'\\xff\\xfe caf\\xc3\\xa9\\n')")
        assert len(cell.lines[0]) == 1 << 20 and "café" in cell.lines[1]

    def test_progress_bars(self, notebook: Notebook) -> None:
        cell = notebook.run(
            "%%parallel\nimport sys\nfor i in (1, 2, 3):\n    sys.stderr.write(f'\\r {i}0%')\nsys.stderr.write('\\n')"
        )
        assert cell.stderr.replace("\r\r", "\r") == "\r 10%\r 20%\r 30%\n"


class TestOptions:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("%%parallel dat", "Did you mean 'data'?"),
            ("%%parallel data --bach x", "Did you mean '--batch'?"),
            ("%%parallel --on 7", "ranks 0 to 1"),
            ("%%parallel --on x", "--on"),
            ("%%parallel -n 0", "between 1 and"),
            ("%%parallel -n 1000", "between 1 and"),
            ("%%parallel data --aggregate middle", "central"),
            ("%%parallel --out a+b", "not a variable name"),
        ],
    )
    def test_a_wrong_one_is_named(self, notebook: Notebook, line: str, says: str) -> None:
        cell = notebook.run(f"{line}\npass", fails=True)
        assert cell.status == "error" and says in cell.traceback
        assert len(cell.traceback.splitlines()) == 1, "one line, no traceback"

    def test_wrong_command(self, notebook: Notebook) -> None:
        assert "Did you mean 'status'?" in notebook.run("%parallel staus", fails=True).traceback

    def test_quiet(self, notebook: Notebook) -> None:
        cell = notebook.run("%%parallel --quiet\nprint(1)")
        assert cell.stdout == "1\n" and not cell.shown

    def test_help(self, notebook: Notebook) -> None:
        pages = notebook.client.inspect("%%parallel", reply=True, timeout=10)["content"]
        assert "--batch" in pages["data"]["text/plain"]

    def test_tab_completes(self, notebook: Notebook) -> None:
        answer = notebook.client.complete("%%parallel da", reply=True, timeout=10)["content"]
        assert answer["matches"] == ["data"] and answer["cursor_start"] == len("%%parallel ")


def test_what_is_set_for_all_of_torch_and_numpy_holds_on_both_sides(notebook: Notebook) -> None:
    notebook.run("import torch, numpy as np\ntorch.set_default_dtype(torch.float64); np.set_printoptions(precision=2)")
    shown = notebook.run("%%parallel data\nx = torch.ones(2)\nprint(x.dtype, np.array([1 / 3]))")
    assert shown.said == {"torch.float64 [0.33]"}
    notebook.run("%%parallel\ntorch.set_default_dtype(torch.float32); torch.set_grad_enabled(False); np.seterr(divide='ignore')")
    there = notebook.value("[str(torch.get_default_dtype()), torch.is_grad_enabled(), np.geterr()['divide']]")
    assert there == ["torch.float32", False, "ignore"]
    notebook.run("torch.set_grad_enabled(True); np.seterr(divide='warn'); np.set_printoptions(precision=8)")
    assert notebook.run("%%parallel\nprint(torch.ones(1, requires_grad=True).exp().requires_grad)").said == {"True"}


class TestSurroundings:
    """What a cell finds around it besides variables is the notebook's, also when it has changed since the ranks started."""

    def test_folders(self, notebook: Notebook, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "nbpar_test_here.py").write_text("VALUE = 3")
        (tmp_path / "inner" / "nbpar_test_there.py").write_text("VALUE = 4")
        notebook.run(f"import os, sys\nbefore = os.getcwd(), list(sys.path)\nos.chdir({str(tmp_path)!r})")
        notebook.run("sys.path.append(os.path.abspath('inner'))\nimport nbpar_test_here, nbpar_test_there")
        assert notebook.run("%%parallel\nprint(nbpar_test_here.VALUE, nbpar_test_there.VALUE)").said == {"3 4"}
        notebook.run("%%parallel\nos.chdir('inner'); sys.path.remove(os.getcwd())")
        assert notebook.value("(os.path.basename(os.getcwd()), os.getcwd() in sys.path)") == ("inner", False)
        notebook.run("os.chdir(before[0]); sys.path[:] = before[1]")

    def test_environment(self, notebook: Notebook) -> None:
        notebook.run("import os\nos.environ['NBPAR_TEST_A'] = 'a'; os.environ['NBPAR_TEST_B'] = 'b'")
        look = "%%parallel\nprint(os.environ.get('NBPAR_TEST_A'), os.environ.get('NBPAR_TEST_B'))"
        assert notebook.run(look).said == {"a b"}
        notebook.run("%env NBPAR_TEST_A=2\ndel os.environ['NBPAR_TEST_B']")
        assert notebook.run(look).said == {"2 None"}

    @pytest.mark.parametrize("by", ["importlib", "autoreload"])
    def test_edited_modules(self, tmp_path: Path, by: str) -> None:
        source = "def value(): return {0}\nclass Thing:\n    def value(self): return {0}\n"
        reload = (
            "" if by == "autoreload" else "import importlib; importlib.reload(nbpar_test_edited)\nthing.__class__ = edited.Thing"
        )
        (tmp_path / "nbpar_test_edited.py").write_text(source.format(1))
        with Notebook() as notebook:
            if by == "autoreload":
                notebook.run("%load_ext autoreload\n%autoreload 2")
            notebook.run(f"%parallel start -n 2\nimport sys; sys.path.append({str(tmp_path)!r})")
            notebook.run("import nbpar_test_edited\nedited = nbpar_test_edited\nthing = edited.Thing()")
            look = "%%parallel\nprint(edited.value(), thing.value(), type(thing) is edited.Thing)"
            assert notebook.run(look).said == {"1 1 True"}
            (tmp_path / "nbpar_test_edited.py").write_text(source.format("2 + 20"))
            notebook.run(reload)
            assert notebook.run("print(edited.value(), thing.value(), type(thing) is edited.Thing)").said == {"22 22 True"}
            assert notebook.run(look).said == {"22 22 True"}


def test_a_working_folder_that_is_gone_hinders_no_cell(tmp_path: Path) -> None:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2")
        notebook.run(f"import os; os.mkdir('{tmp_path}/gone'); os.chdir('{tmp_path}/gone'); os.rmdir('{tmp_path}/gone')")
        assert notebook.run("%%parallel\nx = 1").status == "ok"
        assert notebook.run("%%parallel\nprint(x)").said == {"1"}


MEMORY = """
import resource, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20
"""
STEPS = """
for step in range(6):
    if step == 2: before = faults()
    some = [torch.ones(1 << 20) for _ in range(32)]
    del some
print(faults() - before)
"""


def test_freed_memory_is_kept_while_cells_run_and_given_back_when_none_does(notebook: Notebook) -> None:
    notebook.run(f"%%parallel\n{MEMORY}")
    assert max(map(int, notebook.run(f"%%parallel\n{STEPS}").said)) < 8000  # 32,000 in each step, if it were not kept
    held = notebook.run("%%parallel\nprint(resident())").said
    time.sleep(3)
    left = notebook.run("%%parallel\nprint(resident())").said
    assert min(map(int, held)) - max(map(int, left)) > 64  # of 128 MiB
