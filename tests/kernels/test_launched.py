"""A kernel that a launcher starts together with its ranks."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nbpar.kernel.launched import connection_file
from nbpar.kernel.meeting import Meeting
from nbpar.ranks import prepare
from tests.faults.common import gone
from tests.kernels.common import interrupted
from tests.notebook import Notebook

Install = Callable[..., Path]
HERE = Path(sys.prefix) / "bin"
SUM = "%%parallel\nimport torch, torch.distributed as dist\ny = torch.ones(2); dist.all_reduce(y); print(y.tolist())"


def job(notebook: Notebook) -> list[int]:
    """The launcher and all that came from it: guards, ranks and the kernel."""
    launcher = psutil.Process(notebook.manager.provisioner.pid)  # type: ignore[union-attr,attr-defined]
    return [launcher.pid, *(process.pid for process in launcher.children(recursive=True))]


def kernel_of(notebook: Notebook) -> int:
    return int(notebook.value("__import__('os').getpid()"))


@pytest.mark.timeout(240)
def test_interrupts_restarts_and_shutdown_again_and_again(install: Install, tmp_path: Path) -> None:
    install("-n", "2", "--by-launcher", name="launched")
    with Notebook(kernel="launched") as notebook:
        for _ in range(3):
            assert notebook.run(SUM).said == {"[2.0, 2.0]"}
            notebook.run("import nbpar; hub = nbpar.world()._hub")
            pids, folder = notebook.value("nbpar.world().pids"), Path(notebook.value("hub.folder"))
            for _ in range(2):
                assert interrupted(notebook, tmp_path / "asleep") == "KeyboardInterrupt"
                assert interrupted(notebook, tmp_path / "asleep", magic="") == "KeyboardInterrupt"
            assert notebook.run(SUM).said == {"[2.0, 2.0]"} and notebook.value("nbpar.world().pids") == pids
            everyone = job(notebook)
            assert len(everyone) == 6 and {*pids, kernel_of(notebook)} < set(everyone)
            assert not Path(f"{notebook.manager.connection_file}.ranks").exists()
            notebook.manager.restart_kernel()
            notebook.client.wait_for_ready(timeout=60)
            assert gone(everyone, 0.1) and not folder.exists()
        everyone = job(notebook)
        notebook.manager.shutdown_kernel(now=False)
        assert gone(everyone, 2)


def test_what_these_ranks_cannot_do_is_said_and_costs_nothing(install: Install) -> None:
    install("-n", "2", "--by-launcher", "--mpiexec", str(HERE / "mpiexec"), name="launched")
    with Notebook(kernel="launched") as notebook:
        notebook.run("x = 5")
        cell = notebook.run("%parallel restart", fails=True)
        assert cell.error == "LaunchError" and "Nothing was restarted" in cell.traceback and "restart the kernel" in cell.traceback
        cell = notebook.run("%%parallel -n 1\n1", fails=True)
        assert cell.error == "OptionError" and "--on 0-0" in cell.traceback
        assert notebook.run(SUM).said == {"[2.0, 2.0]"}

        everyone = job(notebook)
        cell = notebook.run("%%parallel\nimport os\nif dist.get_rank(): os.kill(os.getpid(), 9)\ndist.barrier()", fails=True)
        assert cell.error == "RankDied" and "killed by SIGKILL" in cell.traceback and "restart the kernel" in cell.traceback
        assert notebook.value("x") == 5, "the kernel goes on"
        assert notebook.run("%parallel status").stdout.startswith("nbpar: no ranks run")
        for _ in range(2):
            cell = notebook.run(SUM, fails=True)
            assert cell.error == "LaunchError" and "%parallel start -n 2" in cell.traceback
        notebook.run("%parallel start -n 2")
        assert notebook.run("%%parallel\nprint(x)").said == {"5"}
        everyone += job(notebook)
        notebook.manager.shutdown_kernel(now=False)
        assert gone(everyone, 5)


@pytest.mark.parametrize("victim", ["launcher", "kernel", "guard"])
def test_whoever_is_killed_nothing_is_left(install: Install, victim: str) -> None:
    install("-n", "2", "--by-launcher", name="launched")
    with Notebook(kernel="launched") as notebook:
        assert notebook.run(SUM).said == {"[2.0, 2.0]"}
        everyone, kernel = job(notebook), kernel_of(notebook)
        os.kill({"launcher": everyone[0], "kernel": kernel, "guard": psutil.Process(kernel).ppid()}[victim], signal.SIGKILL)
        assert gone(everyone, 5)


SRUN = """#!/bin/bash
# srun -n N COMMAND…, which says who is who in Slurm's words
exec {forker} "$1" "$2" sh -c 'SLURM_PROCID=$PMI_RANK SLURM_STEP_NUM_TASKS=$PMI_SIZE SLURM_STEP_NUM_NODES=2 exec "$@"' - "${{@:3}}"
"""


def test_by_srun_and_on_hosts_that_share_no_sockets(install: Install, tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(forker=HERE / "mpiexec.gforker"))
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    install("-n", "2", "--by-launcher", "--mpiexec", str(srun), "--interface", "127.0.0.1", name="slurm")
    with Notebook(kernel="slurm") as notebook:
        assert notebook.run(SUM).said == {"[2.0, 2.0]"}
        seen = notebook.run("%%parallel\nimport os\nprint(os.environ['NBPAR_ADDRESS'].split()[0], 'NBPAR_KEY' in os.environ)").said
        assert seen == {"tcp://127.0.0.1 True"}
        assert notebook.value("[name for name in __import__('os').environ if name.startswith(('PMI', 'SLURM'))]") == []
        everyone = job(notebook)
    assert gone(everyone, 5)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, "one")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, "one")),  # a batch script, not yet srun
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1"}, (3, 4, "one")),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}, (3, 4, "many")),
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}, (1, 4, "many")),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, (2, 3, "one")),
    ],
)
def test_who_the_launcher_says_we_are(
    variables: dict[str, str], expected: tuple[int, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = prepare.without_launcher(os.environ)
    for name in set(os.environ) - set(clean):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (prepare.rank_from_launcher(), prepare.size_from_launcher(), prepare.hosts_from_launcher()) == expected
    assert not set(prepare.without_launcher(os.environ)) & set(variables) - {"SLURM_NTASKS"}


def test_the_meeting_is_private_and_forgets_the_dead(tmp_path: Path) -> None:
    meeting = Meeting(str(tmp_path / "kernel.json"))
    assert meeting.wait(hope=lambda: False) is None
    meeting.open({"NBPAR_KERNEL": f"{os.uname().nodename}:{os.getpid()}", "A": "b"})
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = Meeting(str(tmp_path / "kernel.json")).wait(hope=lambda: False)
    assert found is not None and found["A"] == "b"
    meeting.open({"NBPAR_KERNEL": f"{os.uname().nodename}:{2**22 + 1}"})  # above the system's largest process id
    assert meeting.look() is None
    meeting.close()
    assert not list(tmp_path.iterdir())


def test_the_connection_file_among_a_kernels_arguments() -> None:
    assert connection_file(["--debug", "-f", "a"]) == connection_file(["-f=a"]) == connection_file(["--f=a", "-n", "2"]) == "a"
    with pytest.raises(SystemExit, match="needs `-f CONNECTION_FILE`"):
        connection_file(["-f"])
