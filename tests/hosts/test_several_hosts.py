"""Ranks on several hosts: as on one, and with the hosts' names."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil
import pytest

from nbpar.errors import LaunchError, OptionError
from nbpar.ranks import hosts as places
from nbpar.ranks.world import Settings, World
from tests.faults import test_snapshots as snapshots
from tests.hosts.conftest import start
from tests.hosts.rig import Hosts
from tests.notebook import Notebook
from tests.world.test_start import script


def test_ranks_are_where_they_were_asked_for(spread: Notebook) -> None:
    assert spread.value("nbpar.world().hosts") == ["a", "a", "b", "b"]
    assert "4 ranks on a (ranks 0,1, processes " in (status := spread.run("%parallel status").stdout)
    assert ", b (ranks 2,3, processes " in status
    said = spread.run("%%parallel\nimport os\nprint(os.uname().nodename, nbpar.rank())").said
    assert said == {"a 0", "a 1", "b 2", "b 3"}


def test_the_key_is_on_no_command_line(spread: Notebook, hosts: Hosts) -> None:
    ranks = hosts.processes("a", "b")
    keys = {process.environ().get("NBPAR_KEY", "") for process in ranks if "nbpar.ranks.rank" in process.cmdline()}
    assert len(keys) == 1 and all(keys)
    key = keys.pop()
    assert not [process for process in hosts.processes() if any(key in word for word in process.cmdline())]
    assert key not in spread.run("%parallel status").stdout


def test_the_key_is_in_no_error(tmp_path: Path) -> None:
    chatty = script(tmp_path / "chatty", 'test "$1" = --version && echo HYDRA && exit 0\nenv | grep NBPAR_; exit 3')
    with pytest.raises(LaunchError, match="NBPAR_KEY=…"):
        World(Settings(size=1, mpiexec=chatty, interface="127.0.0.1"), {}).start()


def test_values_and_training_equal_one_process(spread: Notebook) -> None:
    spread.run("""
import copy, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
alone = copy.deepcopy(model)
X, y = torch.randn(10, 4).double(), torch.randn(10, 1).double()
def train(model):
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(X), y)
        loss.backward()
        opt.step()
    return loss.item()
""")
    spread.run("%%parallel data\nloss = train(model)")
    spread.run("expected = train(alone)")
    same = "all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(model.parameters(), alone.parameters()))"
    assert spread.value(f"abs(loss - expected) < 1e-12 and {same}")
    shown = str(spread.run("%%parallel data --show split,live\nloss = train(model)").shown)
    assert "rank 3 on b" in shown and "0 on a" in shown
    assert spread.value("max(begins := nbpar.last().timeline.begin.values()) - min(begins)") < 60, "clocks are 1000 s apart"


@pytest.mark.parametrize("mode", ["data", "model"])
def test_what_stays_is_in_the_notebook_after_a_death(spread: Notebook, hosts: Hosts, mode: str) -> None:
    """The kernel's host has the snapshot; nothing of it is left on the others."""
    left = set(Path(tempfile.gettempdir()).glob("nbpar-part-*"))
    spread.run(snapshots.SGD)
    made, die = f"{snapshots.MAKE}\nbegun = time.time()", snapshots.DIE.replace("== 1", "== 3")
    keep = f"%%parallel {mode} --keep model,opt --snapshot 0.5"
    cell = spread.run(keep + made + snapshots.LOOP.format(steps=100_000, then=die), fails=True)
    assert cell.error == "RankDied" and "rank 3" in cell.traceback and " on b)" in cell.traceback, cell
    step = int(cell.stdout.rpartition("after optimiser step ")[2].split(".")[0])
    cell = spread.run(f"%%parallel {mode}" + snapshots.LOOP.format(steps=3, then="pass"))
    assert f"model, opt: in the notebook as of optimiser step {step} of the cell in which the others ended." in cell.stdout
    assert spread.value("(type(model).__name__, nbpar.world().hosts)") == ("Sequential", ["a", "a", "b", "b"])
    spread.run("there = state()\n" + snapshots.SGD + snapshots.MAKE + snapshots.LOOP.format(steps=step + 3, then="pass"))
    assert spread.value("apart(there, state())") < 1e-12
    assert set(Path(tempfile.gettempdir()).glob("nbpar-part-*")) == left


def test_large_values_go_once_to_each_host(spread: Notebook, hosts: Hosts) -> None:
    spread.run("import torch\nbig = torch.arange(1_000_000)")
    before = {name: hosts.received(name) for name in "ab"}
    assert spread.run("%%parallel\nprint(big.sum().item(), len(big))").said == {"499999500000 1000000"}
    came = {name: hosts.received(name) - before[name] for name in "ab"}
    assert all(8e6 < count < 9.6e6 for count in came.values()), came
    assert spread.run("%%parallel --on 1,3\nprint(big[-1].item())").said == {"999999"}
    before = {name: hosts.received(name) for name in "ab"}
    assert spread.run("%%parallel\nprint(big[-1].item())").said == {"999999"}
    spread.run("big += 1")
    assert spread.run("%%parallel --on 1,2,3\nprint(big[-1].item())").said == {"1000000"}


def test_an_exception_names_the_host(spread: Notebook) -> None:
    cell = spread.run("%%parallel\nif nbpar.rank() == 3:\n    raise ValueError('no')", fails=True)
    assert "### rank 3 of 4 on b" in cell.traceback and "ValueError: no" in cell.traceback


def test_an_interrupt_reaches_all(spread: Notebook) -> None:
    message = spread.send_until("%%parallel\nimport time\nprint('begun')\ntime.sleep(60)")
    spread.interrupt()
    cell = spread.collect(message, 20)
    assert "KeyboardInterrupt" in cell.traceback and cell.seconds < 15
    assert spread.run("%%parallel\nprint('on')").said == {"on"}


def test_a_killed_rank_is_named_with_its_host(spread: Notebook, hosts: Hosts) -> None:
    message = spread.send_until("%%parallel\nimport time\nprint('begun', flush=True)\ntime.sleep(60)")
    victim = min(process.pid for process in hosts.processes("b") if is_rank(process))
    psutil.Process(victim).kill()
    cell = spread.collect(message, 20)
    assert cell.error == "RankDied" and f"process {victim} on b) ended: killed by SIGKILL" in cell.traceback
    assert spread.run("x = 3").status == "ok"
    assert spread.run("%%parallel\nprint(x)").said == {"3"}


def is_rank(process: psutil.Process) -> bool:
    """Not its guard, which has the same command line."""
    parent = process.parent()
    return bool(parent and "nbpar.ranks.rank" in process.cmdline() and "nbpar.ranks.rank" in parent.cmdline())


def test_a_host_that_is_cut_off_is_told_within_five_seconds(spread: Notebook, hosts: Hosts) -> None:
    spread.run("%%parallel\nkept = nbpar.size()")
    ranks = [process for process in hosts.processes("a", "b") if "nbpar.ranks.rank" in process.cmdline()]
    folders = {process.environ()["NBPAR_FOLDER"] for process in ranks if is_rank(process) and "NBPAR_FOLDER" in process.environ()}
    message = spread.send_until(
        "%%parallel\nimport time, torch.distributed as dist\nprint('begun')\ntime.sleep(60)\ndist.barrier()"
    )
    hosts.cut("b")
    cut = time.monotonic()
    try:
        cell = spread.collect(message, 30)
        told = time.monotonic() - cut
        assert cell.error == "RankDied" and "b cannot be reached any more: nothing was heard of rank 2,3" in cell.traceback
        assert told < 5, f"the requirement: within 5 s; it took {told:.1f} s"
        assert spread.value("kept") == 4
        psutil.wait_procs(ranks, timeout=10)
        assert not [process for process in ranks if process.is_running()], "guards end what the kernel cannot reach"
        assert not [folder for folder in folders if Path(folder).exists()]
        elsewhere = spread.run(start(hosts, "a:2"), timeout=60)
        assert "2 ranks on a" in elsewhere.stdout
        assert spread.run("%%parallel\nprint(kept, nbpar.size())").said == {"4 2"}
        failed = spread.run(start(hosts), fails=True, timeout=60)
        assert failed.error == "LaunchError" and "b" in failed.traceback
    finally:
        hosts.mend("b")
    spread.run(start(hosts))
    assert spread.run("%%parallel\nprint(kept, nbpar.size())").said == {"4 4"}


def test_gloo_finds_its_way_without_a_common_folder(spread: Notebook, hosts: Hosts) -> None:
    spread.run("import os\nos.environ['TMPDIR'] = '/dev/shm'")  # each host's own
    spread.run(f"{start(hosts)} --backend gloo")
    cell = (
        "%%parallel\nimport torch, torch.distributed as dist\nx = torch.ones(2)\ndist.all_reduce(x)\nprint(dist.get_backend(), x)"
    )
    assert spread.run(cell).said == {"gloo tensor([4., 4.])"}
    spread.run("del os.environ['TMPDIR']")


def test_nothing_is_left(spread: Notebook, hosts: Hosts) -> None:
    spread.run("%parallel stop")
    assert hosts.processes("a", "b") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a:4,b:4", (places.Host("a", 4), places.Host("b", 4))),
        ("a", (places.Host("a"),)),
        ("10.0.0.1:2", (places.Host("10.0.0.1", 2),)),
    ],
)
def test_hosts_are_read(text: str, found: tuple[places.Host, ...]) -> None:
    assert places.read(text) == found


@pytest.mark.parametrize("text", ["", "a:0", "a:x", "a:2,a:2", "-oProxyCommand=x", "a:"])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError):
        places.read(text)


def test_sizes_follow_from_the_hosts() -> None:
    settings = Settings(hosts=places.read("a:3,b:2"))
    assert World(settings, {}).size == 5
    with pytest.raises(OptionError, match="between 1 and 5"):
        World(Settings(hosts=settings.hosts, size=6), {})


def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(LaunchError, match=r"no-such-host\.invalid cannot be reached"):
        World(Settings(hosts=places.read("no-such-host.invalid:2")), {}).start()


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "scontrol", 'test "$3" = "n[1-2]" && printf "n1\\nn2\\n"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "6")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert places.of_slurm() == ("n1", "n2") and World(Settings(), {}).size == 6
    monkeypatch.setenv("SLURM_JOB_NODELIST", Path("/proc/sys/kernel/hostname").read_text().strip())
    assert places.of_slurm() == ()
