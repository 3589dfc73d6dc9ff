"""`python -m nbpar doctor`: all is here; and each thing that may be missing, with what to do about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbpar import doctor
from nbpar.doctor import Finding
from nbpar.ranks import launch


def test_all_is_here() -> None:
    ran = subprocess.run([sys.executable, "-m", "nbpar", "doctor"], capture_output=True, text=True, timeout=150, check=False)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0 and lines[-1] == "All that nbpar needs is here.", ran.stdout + ran.stderr
    marks = {line[2:16].strip(): line[0] for line in lines[1:-1] if not line.startswith("  ")}
    for name in ("MPI", "launcher", "torch", "sockets", "kernel side", "self-test"):
        assert marks[name] == "✓", ran.stdout
    assert any("2 ranks, the sum is right" in line for line in lines)


def test_no_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda *_, **__: None)
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "✗ launcher" in said and "on PATH" in said and "→ Type `pip install mpich`" in said
    assert "– self-test      not run: launcher first" in said and "1 thing to mend" in said


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"anywidget", "mpi4py", "notebook"}
    there = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda package: None if package in absent else there(package))
    assert doctor.mpi() == Finding("MPI", False, "mpi4py is not installed", "Type `pip install mpi4py mpich`.")
    ours, others = doctor.front_end()
    assert ours.good is False and "not here: anywidget" in ours.text and ours.mend == "Type `pip install anywidget`."
    assert others.good is None and "jupyterlab 4" in others.text and "pip install notebook" in others.mend


@pytest.mark.parametrize(("module", "name"), [("mpi4py.MPI", "MPI"), ("torch", "torch")])
def test_a_library_that_does_not_load(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr("mpi4py.MPI", raising=False)
    checks: dict[str, Any] = {"MPI": doctor.mpi, "torch": lambda: next(doctor.torch_and_gpus())}
    found = checks[name]()
    assert (found.name, found.good) == (name, False) and "pip install" in found.mend


def test_gpus_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbpar.ranks.machine.gpus", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    _, found = doctor.torch_and_gpus()
    assert found.good is False and "2 here, but torch" in found.text and "CUDA build" in found.mend


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.shared_memory().good is not False
    monkeypatch.setattr(doctor, "LITTLE", 1 << 60)
    little = doctor.shared_memory()
    assert little.good is None and "which is little" in little.text and "--shm-size" in little.mend

    monkeypatch.setattr(doctor, "SHARED_MEMORY", str(tmp_path / "shm"))
    assert "mount -t tmpfs" in doctor.shared_memory().mend
    (tmp_path / "shm").mkdir()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = doctor.shared_memory()
    assert found.good is False and "No space left" in found.text


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    assert "no folder" in doctor.sockets().text
    (tmp_path / ("x" * 100)).mkdir()
    found = doctor.sockets()
    assert found.good is False and "too long" in found.text and "TMPDIR" in found.mend


def test_ranks_that_do_not_come_or_add_wrongly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asleep = tmp_path / "mpiexec"
    asleep.write_text('#!/bin/sh\ntest "$1" = --version && echo HYDRA && exit 0\nexec sleep 60\n')
    asleep.chmod(0o755)
    monkeypatch.setenv("NBPAR_MPIEXEC", str(asleep))
    found = doctor.self_test(limit=1)
    assert found.good is False and "no answer within 1 s" in found.text and found.mend

    monkeypatch.delenv("NBPAR_MPIEXEC")
    monkeypatch.setattr(doctor, "SUM", "import torch\ntotal = torch.zeros(4)")
    found = doctor.self_test()
    assert found.good is False and "the sum is [0.0, 0.0, 0.0, 0.0]" in found.text
