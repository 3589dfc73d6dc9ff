"""Kernelspecs: the files by which Jupyter's front ends find a kernel. A plain command line, so that all of them can start it."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from nbpar.errors import OptionError, suggest
from nbpar.ranks import launch
from nbpar.ranks.world import Settings

OURS = "nbpar"  # key in a kernelspec's metadata


@dataclass(frozen=True)
class Spec:
    """What a kernelspec says. size: None for what the machine offers when the kernel starts; env: variables of kernel and ranks.

    by_launcher: the command line begins with the MPI launcher, which starts kernel and ranks.
    """

    size: int | None = None
    name: str = ""
    display_name: str = ""
    mpiexec: str | None = None
    mpi_args: str = ""
    interface: str | None = None
    by_launcher: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """The name by which programs ask for the kernel. Raises OptionError if Jupyter would not take it."""
        name = self.name or ("nbpar" if self.size is None else f"nbpar-{self.size}")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise OptionError(f"--name {name}: kernels are named by letters, digits, '.', '_' and '-'.")
        return name

    @property
    def title(self) -> str:
        """What front ends show."""
        if self.display_name:
            return self.display_name
        many = "MPI ranks" if self.size is None else f"{self.size} MPI rank{'' if self.size == 1 else 's'}"
        return f"Python {sys.version_info.major} ({many})"

    def command(self) -> list[str]:
        """The kernel's command line, in which Jupyter puts the connection file. Raises LaunchError if it needs a launcher."""
        module = ["nbpar.kernel", "-f", "{connection_file}"]
        if self.interface:
            module += [f"--interface={self.interface}"]
        if self.by_launcher:
            size = Settings().default_size if self.size is None else self.size
            return launch.find(self.mpiexec, full=bool(self.mpi_args)).command(size, self.mpi_args, module=module)
        if self.size is not None:
            module += ["-n", str(self.size)]
        if self.mpiexec:
            module += [f"--mpiexec={self.mpiexec}"]
        if self.mpi_args:
            module += [f"--mpi-args={self.mpi_args}"]
        return [sys.executable, "-m", *module]

    def content(self) -> dict[str, Any]:
        """kernel.json, as far as it differs from ipykernel's."""
        return {
            "argv": self.command(),
            "display_name": self.title,
            "interrupt_mode": "message",  # a signal would go to the launcher and the ranks as well
            "env": dict(self.env),
            "metadata": {"debugger": True, OURS: {"ranks": self.size}},
        }


@dataclass(frozen=True)
class Installed:
    """A kernelspec that is there."""

    name: str
    title: str
    folder: str


def install(spec: Spec, *, user: bool = False, prefix: str | None = None) -> str:
    """Writes the kernelspec, in place of one of the same name; its folder.

    user: for this user; prefix: below this folder's share/jupyter; neither: for the whole system.
    Raises OptionError where that folder cannot be written to.
    """
    folder = write_kernel_spec(f"{tempfile.mkdtemp()}/{spec.directory}", spec.content())  # with ipykernel's pictures
    manager = KernelSpecManager()
    try:
        return str(manager.install_kernel_spec(folder, spec.directory, user=user, prefix=prefix))
    except OSError as error:
        raise OptionError(
            f"The kernelspec cannot be written ({error}). Choose another place: --user, --sys-prefix, --prefix P."
        ) from None


def installed() -> Iterator[Installed]:
    """nbpar's kernelspecs where Jupyter looks for them, by name."""
    for name, found in sorted(KernelSpecManager().get_all_specs().items()):
        if OURS in found["spec"].get("metadata", {}):
            yield Installed(name, found["spec"]["display_name"], found["resource_dir"])


def remove(name: str) -> str:
    """Removes a kernelspec of nbpar's; the folder that it was in. Raises OptionError."""
    ours = {spec.name: spec for spec in installed()}
    if name not in ours:
        manager = KernelSpecManager()
        try:
            manager.get_kernel_spec(name)
        except NoSuchKernel:
            listed = f" There are: {', '.join(ours)}." if ours else " None of nbpar's is installed."
            raise OptionError(f"There is no kernel {name!r}.{suggest(name, ours)}{listed}") from None
        raise OptionError(f"The kernel {name!r} is not one of nbpar's. Type `jupyter kernelspec remove {name}`.")
    try:
        return str(KernelSpecManager().remove_kernel_spec(name))
    except OSError as error:
        raise OptionError(f"The kernel {name!r} cannot be removed: {error}.") from None
