"""IPython's kernel with the extension loaded and its ranks on their way."""

from __future__ import annotations

import os

from ipykernel.kernelapp import IPKernelApp, kernel_aliases
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Dict, Integer, Unicode

from nbpar import ranks
from nbpar.ranks.guard import die_with_parent
from nbpar.ranks.prepare import LAUNCHED
from nbpar.ranks.world import Settings, World


class RanksKernelApp(IPKernelApp):
    """`-n`, `--mpiexec=`, `--mpi-args=` and `--interface=` are those of `%parallel start`; all else is ipykernel's."""

    size = Integer(None, allow_none=True, help="number of ranks (default: the GPUs, else the cores)").tag(config=True)
    mpiexec = Unicode(None, allow_none=True, help="the MPI launcher").tag(config=True)
    mpi_args = Unicode("", help="more options for the launcher").tag(config=True)
    interface = Unicode(None, allow_none=True, help="talk to the ranks over TCP with CURVE on this address").tag(config=True)
    aliases = Dict(
        {
            **kernel_aliases,
            "n": "RanksKernelApp.size",
            "mpiexec": "RanksKernelApp.mpiexec",
            "mpi-args": "RanksKernelApp.mpi_args",
            "interface": "RanksKernelApp.interface",
        }
    )
    shell: InteractiveShell

    def initialize(self, argv: list[str] | None = None) -> None:
        super().initialize(argv)
        self.shell.run_line_magic("load_ext", "nbpar")
        ranks.begin(self.world())

    def world(self) -> World:
        """The ranks that came with this kernel, or those that it starts itself."""
        settings = Settings(size=self.size, mpiexec=self.mpiexec, mpi_args=self.mpi_args, interface=self.interface)
        if LAUNCHED not in os.environ:
            return World(settings, self.shell.user_ns)
        from nbpar.kernel.meeting import Meeting
        from nbpar.kernel.world import LaunchedWorld

        die_with_parent()
        size, hosts = os.environ.pop(LAUNCHED).split()
        return LaunchedWorld(
            Settings(size=int(size), interface=self.interface),
            self.shell.user_ns,
            Meeting(self.abs_connection_file),
            many_hosts=hosts == "many",
        )
