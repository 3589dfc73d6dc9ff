"""A place like a container of mybinder.org's: an environment of its own, no root, 64 MiB of shared memory, 2 GiB of memory.

nbpar is installed from its wheel; what it depends on is found where the tests have it. Who runs the tests as root on Linux gets
all of that by a mount namespace, another user and a control group; otherwise the place is only an environment, and this user's.
Memory is watched on Linux, what processes share counted once: where there is no control group, what takes more is ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil

from tests.limits import can_limit, limited
from tests.ranks import ROOT

NOBODY = "65534"
SHARED_MEMORY = "64m"
MEMORY = 2 << 30  # bytes
LOOK = 0.5  # seconds between two looks at it
BESIDE = (  # what pip puts beside Python's packages
    *("lib/libmpi*", "lib/mpich", "bin/mpiexec*", "bin/hydra*"),
    *("share/jupyter/lab", "share/jupyter/labextensions", "share/jupyter/nbconvert"),
)
ENTER = f"""
test -z "$GROUP" || echo $$ > "$GROUP"
mount -t tmpfs -o size={SHARED_MEMORY} tmpfs /dev/shm
mount --bind "$BASE" "$PLACE/base"
mount --bind "$PREFIX" "$PLACE/prefix"
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --bounding-set=-all --inh-caps=-all "$@"
"""


def confines() -> bool:
    """Whether this user may make a mount namespace and become another user."""
    tools = all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))
    return tools and os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


@dataclass
class Place:
    """folder: with the repository, the environment and a home. limited: by a control group.

    peak: bytes of memory in use at the fullest moment seen.
    """

    folder: Path
    confined: bool
    limited: bool
    peak: int = 0

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @contextmanager
    def running(self, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """A command in the repository, started as binder/start does, and the file of what it says; ended with all it started."""
        prefix = self.folder / "prefix" if self.confined else Path(sys.prefix)
        paths = [str(self.folder / "environment" / "bin"), str(prefix / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]
        env = {
            "PATH": os.pathsep.join(paths), "HOME": str(self.home), "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": str(self.folder / "base" / "lib") if self.confined else "",
            "PLACE": str(self.folder), "BASE": sys.base_prefix, "PREFIX": sys.prefix,
        }  # fmt: skip
        enter = ["unshare", "-m", "bash", "-ec", ENTER, "enter"] if self.confined else []
        log = self.folder / "said"
        with limited(self.folder.name, MEMORY) if self.limited else nullcontext() as group, open(log, "wb") as said:
            process = subprocess.Popen(
                [*enter, "binder/start", *command], cwd=self.repository, env={**env, "GROUP": str(group or "")},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
            try:
                yield process, log
            finally:
                stop(process)

    def run(self, *command: str, timeout: float = 250) -> str:
        """What it said. Raises AssertionError with that if it fails, and if it needs more memory than there is."""
        with self.running(*command) as (process, log):
            end = time.monotonic() + timeout
            while process.poll() is None and time.monotonic() < end and self.peak < MEMORY:
                self.peak = max(self.peak, memory(process.pid))
                time.sleep(LOOK)
        said = log.read_text(errors="replace")
        assert self.peak < MEMORY, f"{command}: {self.peak >> 20} MiB\n{said}"
        assert process.returncode == 0, f"{command}:\n{said}"
        return said

    def execute(self, name: str) -> tuple[Any, str]:
        """A demo notebook after `python -m nbpar demo`, and what that said."""
        said = self.run("python", "-m", "nbpar", "demo", f"demo_notebooks/{name}", "--to", str(self.home))
        return nbformat.read(self.home / name, as_version=4), said


def memory(pid: int) -> int:
    """Bytes that a process and its descendants have, what they share counted once. Zero where the system does not say."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            pass
    return total


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def stop(process: subprocess.Popen[bytes]) -> None:
    """With all its descendants."""
    if process.poll() is None:
        for one in reversed(family(process.pid)):
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        process.wait(20)


def build(folder: Path) -> Place:
    """The repository as Binder's builder finds it, an environment with nbpar's wheel, and what binder/postBuild does."""
    place = Place(folder, confines(), confines() and can_limit())
    for name in ("repository", "home", "base", "prefix"):
        (folder / name).mkdir()
    for name in ("binder", "demo_notebooks"):
        shutil.copytree(ROOT / name, place.repository / name, ignore=shutil.ignore_patterns("executed", ".*"))
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python, pip = environment / "bin" / "python", [sys.executable, "-m", "pip", "--python"]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, python, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    prefix = folder / "prefix" if place.confined else Path(sys.prefix)
    packages = prefix / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    for path in (one.relative_to(sys.prefix) for pattern in BESIDE for one in Path(sys.prefix).glob(pattern)):
        (environment / path).parent.mkdir(parents=True, exist_ok=True)
        (environment / path).symlink_to(prefix / path)
    if place.confined:
        relink(environment, folder / "base")
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{packages}\n")
    if place.confined:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, int(NOBODY), int(NOBODY), follow_symlinks=False)
    place.run("binder/postBuild")
    return place


def relink(environment: Path, base: Path) -> None:
    """The interpreter is found where it will be mounted: the folder that it comes from may be root's alone."""
    real = Path(sys.base_prefix)
    interpreter = Path(sys.executable).resolve().relative_to(real.resolve())
    for link in environment.glob("bin/python*"):
        if link.is_symlink():
            link.unlink()
            link.symlink_to(base / interpreter)
    settings = environment / "pyvenv.cfg"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("home")]
    settings.write_text("\n".join([f"home = {(base / interpreter).parent}", *lines]) + "\n")
