"""What is released: the archives build, the wheel alone installs into a fresh environment and works there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.ranks import ROOT, mpiexec

PACKAGE = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nbpar").rglob("*") if path.suffix in (".py", ".js", ".css")}
CELLS = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "nbpar")
shell.run_cell_magic("parallel", "-n 2", "import torch.distributed as dist; total = dist.get_world_size()")
print(shell.user_ns["total"], __import__("nbpar").__file__)
shell.run_line_magic("parallel", "stop")
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """What it printed. Raises AssertionError with that if it fails."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    ended = subprocess.run(command, check=False, cwd=cwd, env={**clean, **env}, text=True, capture_output=True, timeout=120)
    assert ended.returncode == 0, f"{command}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's Python: nbpar comes from the wheel, what it depends on is found where the tests have it."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", archives[1])
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_has_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if not name.partition("/")[0].endswith(".dist-info")} == PACKAGE
    assert {"nbpar/display/static/panels.js", "nbpar/display/static/panels.css"} <= names  # what pages draw with
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_sdist_has_what_its_tests_need(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= PACKAGE
    assert {"Makefile", "constraints.txt", "pyproject.toml", "tests/ranks.py", "docs/index.md", "benchmarks/harness.py"} <= names


def test_it_works_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    assert "usage: python -m nbpar COMMAND" in run(installed, "-m", "nbpar", "--help", cwd=tmp_path)
    mpi = {"NBPAR_MPIEXEC": mpiexec(), "LD_LIBRARY_PATH": os.path.join(sys.prefix, "lib")}  # of the tests' own environment
    total, where = run(installed, "-c", CELLS, cwd=tmp_path, **mpi).splitlines()[-2].split()
    assert total == "2" and Path(where).is_relative_to(installed.parents[1])


def test_importing_it_loads_nothing_heavy(installed: Path, tmp_path: Path) -> None:
    heavy = "{'torch', 'numpy', 'mpi4py', 'IPython', 'zmq'}"
    assert run(installed, "-c", f"import nbpar, sys; print({heavy} & set(sys.modules))", cwd=tmp_path).strip() == "set()"


def test_what_it_asks_for_is_what_it_is_tested_with(archives: tuple[Path, Path]) -> None:
    told = [Requirement(text) for text in metadata(archives[1]).get_all("Requires-Dist")]
    needed = [requirement for requirement in told if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    assert len(needed) > 8
    for requirement in needed:
        assert distribution(requirement.name).version in requirement.specifier, requirement


def test_the_oldest_python_can_read_it(archives: tuple[Path, Path]) -> None:
    """Syntax only: the tests run on one version."""
    assert metadata(archives[1])["Requires-Python"] == ">=3.10"
    for name in PACKAGE:
        if name.endswith(".py"):
            ast.parse((ROOT / name).read_text(encoding="utf-8"), name, feature_version=(3, 10))


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))
