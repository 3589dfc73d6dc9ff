"""`python -m nbpar doctor`: what nbpar needs, what of it is here, how to mend the rest, and two ranks that compute a sum."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SHARED_MEMORY = "/dev/shm"
LITTLE = 128 << 20  # bytes of shared memory with which data loaders and many ranks may come to an end of it
SOCKET_PATH = 100  # characters that the path of a Unix socket may have, a few less than the system's limit
QUICK, LIMIT = 10, 60  # seconds: the self-test should take, may take
SUM = """import torch, torch.distributed as dist
total = torch.arange(4.0) * (dist.get_rank() + 1)
dist.all_reduce(total)"""


@dataclass(frozen=True)
class Finding:
    """One line. good: None for what is worth knowing and stops nobody; mend: what to do."""

    name: str
    good: bool | None
    text: str
    mend: str = ""

    def __str__(self) -> str:
        mark = {True: "✓", False: "✗", None: "–"}[self.good]
        return f"{mark} {self.name:<14} {self.text}" + (f"\n  → {self.mend}" if self.mend else "")


def installed(package: str) -> str | None:
    """A package's version; None if it is not here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def mpi() -> Finding:
    name, found = "MPI", installed("mpi4py")
    if found is None:
        return Finding(name, False, "mpi4py is not installed", "Type `pip install mpi4py mpich`.")
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI

        library = " ".join(MPI.Get_library_version().splitlines()[0].strip("\x00").split())
    except (ImportError, RuntimeError) as error:
        mend = "Type `pip install mpich`, or load your site's MPI module and type `pip install --no-binary mpi4py mpi4py`."
        return Finding(name, False, f"mpi4py {found} finds no MPI library: {error}", mend)
    return Finding(name, True, f"{library}, mpi4py {found}")


def launcher() -> Finding:
    from nbpar.errors import LaunchError
    from nbpar.ranks import launch

    try:
        found = launch.find()
    except LaunchError as error:
        text, _, mend = str(error).rpartition("\n")
        return Finding("launcher", False, text, mend)
    return Finding("launcher", True, f"{found.path} ({found.kind}; {found.why})")


def torch_and_gpus() -> Iterator[Finding]:
    from nbpar.ranks import machine

    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", False, f"cannot be imported: {error}", "Type `pip install torch`.")
        return
    if not torch.distributed.is_available():
        yield Finding("torch", False, f"{torch.__version__}, built without torch.distributed", "Install a wheel from pytorch.org.")
        return
    yield Finding("torch", True, torch.__version__)
    present, usable = machine.gpus(), torch.cuda.device_count()
    if usable:
        names = ", ".join(dict.fromkeys(torch.cuda.get_device_name(index) for index in range(usable)))
        yield Finding("GPUs", True, f"{usable}: {names}. Ranks use them after `%parallel start --device cuda`.")
    elif present:
        mend = "Install a CUDA build of torch that fits the driver; see pytorch.org."
        yield Finding("GPUs", False, f"{present} here, but torch {torch.__version__} uses none of them", mend)
    else:
        yield Finding("GPUs", None, "none; ranks compute on the CPU")


def cores() -> Finding:
    from nbpar.ranks import machine

    size = machine.default_size()
    threads = machine.threads(size)
    text = f"{machine.cores()} for this process; by default {size} ranks of {threads} thread{'' if threads == 1 else 's'}"
    few = "More ranks than cores take turns: expect no speed-up here." if size > max(machine.cores(), machine.gpus()) else ""
    return Finding("cores", None if few else True, text, few)


def shared_memory() -> Finding:
    name = "shared memory"
    if not os.path.isdir(SHARED_MEMORY):
        if sys.platform == "darwin":
            return Finding(name, True, "that of macOS")
        return Finding(name, False, f"there is no {SHARED_MEMORY}", f"Mount it: `mount -t tmpfs tmpfs {SHARED_MEMORY}`.")
    larger = "In a container: `docker run --shm-size=1g …`; on a host: `mount -o remount,size=1g /dev/shm`."
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
    except OSError as error:
        full = shutil.disk_usage(SHARED_MEMORY).free < 1 << 20
        mend = f"Remove what fills it, or make it larger. {larger}" if full else f"Type `chmod 1777 {SHARED_MEMORY}` as root."
        return Finding(name, False, f"{SHARED_MEMORY} cannot be written: {error.strerror}", mend)
    free = shutil.disk_usage(SHARED_MEMORY).free
    text = f"{SHARED_MEMORY}: {free / 2**20:,.0f} MiB free"
    return Finding(name, None, f"{text}, which is little", larger) if free < LITTLE else Finding(name, True, text)


def sockets() -> Finding:
    """Kernel and ranks talk over Unix sockets in a folder that is made here."""
    name, mend = "sockets", "Set TMPDIR to a short path that you may write to, such as /tmp."
    try:
        with tempfile.TemporaryDirectory(prefix="nbpar-") as folder:
            longest = f"{folder}/where-1000"
    except OSError as error:
        return Finding(name, False, f"no folder for temporary files: {error}", mend)
    if len(longest) > SOCKET_PATH:
        return Finding(name, False, f"the path of {tempfile.gettempdir()} is too long for Unix sockets", mend)
    return Finding(name, True, f"in {tempfile.gettempdir()}")


def front_end() -> Iterator[Finding]:
    yield packages("kernel side", True, "ipykernel", "ipywidgets", "anywidget")
    yield packages("notebooks", None, "jupyterlab", "notebook", "jupyterlab_widgets", "nbclient")


def packages(name: str, needed: bool | None, *wanted: str) -> Finding:
    """needed: True for what nbpar itself needs, None for what may be installed elsewhere, where the Jupyter server runs."""
    found = {package: installed(package) for package in wanted}
    here = ", ".join(f"{package} {is_version}" for package, is_version in found.items() if is_version)
    missing = [package for package, is_version in found.items() if not is_version]
    if not missing:
        return Finding(name, True, here)
    text = "; ".join(filter(None, [here, f"not here: {', '.join(missing)}"]))
    where = "" if needed else " where your Jupyter server runs, if you use them"
    return Finding(name, False if needed else None, text, f"Type `pip install {' '.join(missing)}`{where}.")


def kernels() -> Finding:
    from nbpar.kernel.spec import installed as specs

    found = [f"{spec.name} ({spec.title})" for spec in specs()]
    return Finding("kernels", None, ", ".join(found) or "none with ranks; `python -m nbpar kernel install -n 4` makes one")


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the main thread when so many seconds are over."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def self_test(limit: int = LIMIT) -> Finding:
    """Two ranks add tensors; the sum is the expected one."""
    from nbpar.errors import NbparError
    from nbpar.ranks.world import Settings, World

    name, start, namespace = "self-test", time.monotonic(), dict[str, Any]()
    world = World(Settings(size=2), namespace)
    try:
        with within(limit):
            world.start()
            world.run(SUM, quiet=True)
            total = namespace["total"].tolist()
    except (NbparError, TimeoutError) as error:
        return Finding(name, False, str(error).replace("\n", "\n    "), "Mend what is marked ✗ above, or see docs/kernels.md.")
    finally:
        world.stop()
    seconds = time.monotonic() - start
    if total != [0.0, 3.0, 6.0, 9.0]:
        return Finding(name, False, f"2 ranks: the sum is {total}, and not [0, 3, 6, 9]", "Try another MPI: `pip install mpich`.")
    text = f"2 ranks, the sum is right, {seconds:.1f} s"
    return Finding(name, True, text, "That is slow: a busy machine, or a cold disk?" if seconds > QUICK else "")


CHECKS: tuple[Callable[[], Finding | Iterator[Finding]], ...] = (
    mpi, launcher, torch_and_gpus, cores, shared_memory, sockets, front_end, kernels
)  # fmt: skip


def findings() -> Iterator[Finding]:
    """All of them, the self-test last; it is left out where it could only fail."""
    ill = []
    for check in CHECKS:
        found = check()
        for finding in [found] if isinstance(found, Finding) else found:
            ill += [finding.name] if finding.good is False else []
            yield finding
    if {"MPI", "launcher", "torch", "sockets"} & set(ill):
        yield Finding("self-test", None, f"not run: {', '.join(ill)} first")
    else:
        yield self_test()


def main(arguments: list[str]) -> int:
    """Prints what was found; 1 if something that nbpar needs is missing or does not work."""
    from nbpar import __version__

    argparse.ArgumentParser(prog="python -m nbpar doctor", description=__doc__).parse_args(arguments)
    print(f"nbpar {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    bad = 0
    for finding in findings():
        bad += finding.good is False
        print(finding, flush=True)
    print("All that nbpar needs is here." if not bad else f"{bad} thing{'' if bad == 1 else 's'} to mend: see → above.")
    return 1 if bad else 0
