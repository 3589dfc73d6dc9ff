"""Starting ranks: which launcher, what is said when there is none, and sizes."""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from nbpar.errors import LaunchError
from nbpar.ranks import launch
from tests.notebook import Notebook


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_first_launcher_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = script(tmp_path / "named", "echo HYDRA build details")
    monkeypatch.setenv("NBPAR_MPIEXEC", named)
    assert launch.find().path == named and launch.find().kind == "hydra"
    other = script(tmp_path / "other", "echo 'mpirun (Open MPI) 5.0'")
    assert launch.find(other).kind == "openmpi"
    monkeypatch.delenv("NBPAR_MPIEXEC")
    assert launch.find().why.startswith("mpiexec in this Python environment")


def test_inside_a_slurm_allocation_it_is_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "srun", "true")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert launch.find().kind == "srun"


def test_no_launcher_says_what_was_tried_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda *_, **__: None)
    with pytest.raises(LaunchError, match=r"(?s)Tried: .*this Python environment.*on PATH.*pip install mpich"):
        launch.find()


def test_broken_launchers_and_wrong_libraries_are_told(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", 'test "$1" = --version && echo HYDRA && exit 0; echo "no ticket" >&2; exit 3')
    alone = script(
        tmp_path / "alone",
        'test "$1" = --version && echo HYDRA && exit 0\nshift 4\nPMI_RANK=0 "$@" & PMI_RANK=1 "$@" & wait',
    )
    with Notebook() as notebook:
        cell = notebook.run(f"%parallel start -n 2 --mpiexec {broken}", fails=True)
        assert cell.error == "LaunchError" and "no ticket" in cell.traceback and "ended with 3" in cell.traceback
        cell = notebook.run(f"%parallel start -n 2 --mpiexec {alone}", fails=True)
        assert "each believes that it is alone" in cell.traceback
        cell = notebook.run("%parallel start -n 2 --mpiexec /nowhere/mpiexec", fails=True)
        assert cell.error == "LaunchError" and "Tried: --mpiexec /nowhere/mpiexec" in cell.traceback
        assert "2 ranks" in notebook.run("%parallel start -n 2").stdout
        assert notebook.run("%%parallel\nprint(nbpar.size())").said == {"2"}


def test_a_start_that_ended_early_is_tried_once_more(tmp_path: Path) -> None:
    mpiexec = launch.find().path
    once = script(
        tmp_path / "once",
        f'test "$1" = --version && echo HYDRA && exit 0\ntest -e {tmp_path}/tried || {{ touch {tmp_path}/tried; exit 15; }}\n'
        f'shift 4; exec {mpiexec} -n 2 "$@"',
    )
    with Notebook() as notebook:
        assert "2 ranks" in notebook.run(f"%parallel start -n 2 --mpiexec {once}").stdout
        assert notebook.run("%%parallel\nprint(nbpar.size())").said == {"2"}


STALE = """#!{python}
# A launcher whose id another one had, which was killed while its ranks started.
import os, sys
from nbpar.ranks.prepare import fnv1a
if sys.argv[1] == "--version":
    sys.exit(print("HYDRA"))
with open("/dev/shm/mpich_shm_%x_0" % fnv1a(b"kvs_%d_0" % os.getpid()), "wb") as memory:
    memory.truncate({size})
with open("{starts}", "a") as starts:
    starts.write("x")
os.execv("{mpiexec}", ["{mpiexec}", "-n", "2", *sys.argv[5:]])
"""


@pytest.mark.parametrize("size", [100, 2118784])
def test_what_a_killed_launcher_left_does_not_hinder(tmp_path: Path, size: int) -> None:
    launcher, starts = tmp_path / "launcher", tmp_path / "starts"
    launcher.write_text(STALE.format(python=sys.executable, size=size, starts=starts, mpiexec=launch.find().path))
    launcher.chmod(0o700)
    with Notebook() as notebook:
        assert "2 ranks" in notebook.run(f"%parallel start -n 2 --mpiexec {launcher}").stdout
        assert notebook.run("%%parallel\nprint(nbpar.size())").said == {"2"}
    assert starts.read_text() == "x", "the first start succeeds"


@pytest.mark.parametrize("backend", ["mpi", "gloo"])
def test_a_world_leaves_nothing_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as folder:  # names of sockets must be short
        monkeypatch.setenv("TMPDIR", folder)
        with Notebook() as notebook:
            notebook.run(f"%parallel start -n 2 --backend {backend}")
            for _ in range(2):
                notebook.run("%%parallel\nimport torch.distributed as dist\ndist.barrier()\n1 / nbpar.rank()", fails=True)
                assert notebook.run("%%parallel\nimport torch.distributed as dist\ndist.barrier()\nprint(2)").said == {"2"}
            assert notebook.run("%%parallel data\nprint(nbpar.size())").said == {"2"}
            notebook.run("%parallel stop")
            assert [name for name in os.listdir(folder) if name.startswith("nbpar")] == []


def test_sizes_more_than_cores_and_a_new_size_keep_the_variables() -> None:
    with Notebook() as notebook:
        assert notebook.value("nbpar.world()") is None
        notebook.run("x = 5")
        cell = notebook.run("%%parallel -n 3\nx += 1\nprint(nbpar.size(), x)")
        assert cell.said == {"3 6"}
        notebook.run("%%parallel\nown = nbpar.rank()")
        cell = notebook.run("%%parallel -n 1\nx += 1\nown = x\nprint(nbpar.size(), own)")
        assert cell.said == {"1 7"} and "3 ranks are replaced by 1" in cell.stdout
        assert "more ranks than cores" in notebook.run("%parallel start -n 5").stdout
        assert notebook.run("%%parallel\nprint(nbpar.size(), x)").said == {"5 7"}


def test_how_long_the_start_took_is_told_once() -> None:
    with Notebook() as notebook:
        started = r" · before it the ranks started, [\d.]+ s$"
        assert re.search(started, notebook.run("%%parallel\npass").closing)
        assert "started" not in notebook.run("%%parallel\npass").closing
        assert re.search(r" each, started in [\d.]+ s\.", notebook.run("%parallel restart").stdout)
        assert "started" not in notebook.run("%%parallel\npass").closing + notebook.run("%parallel status").stdout
        notebook.run("import os, signal, time\nos.kill(nbpar.world().pids[1], signal.SIGKILL)\ntime.sleep(1)")
        assert re.search(started, notebook.run("%%parallel\npass").closing)


def test_gloo_works_too() -> None:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2 --backend gloo")
        notebook.run("%%parallel\nimport torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)")
        assert notebook.run("%%parallel\nprint(dist.get_backend(), x.item())").said == {"gloo 2.0"}


def test_nothing_listens_on_the_network() -> None:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2")
        kernel = psutil.Process(notebook.manager.provisioner.pid)  # type: ignore[union-attr,attr-defined]
        family = kernel.children(recursive=True)
        assert len(family) >= 5  # launcher, guards, ranks
        ports = [c.laddr for process in family for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        assert ports == []
