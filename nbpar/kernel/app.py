"""IPython's kernel with the extension loaded and its ranks on their way."""

from __future__ import annotations

from ipykernel.kernelapp import IPKernelApp, kernel_aliases
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Dict, Integer, Unicode

from nbpar import ranks
from nbpar.ranks.world import Settings, World


class RanksKernelApp(IPKernelApp):
    """`-n N`, `--mpiexec=PATH` and `--mpi-args="…"` are those of `%parallel start`; all else is ipykernel's."""

    size = Integer(None, allow_none=True, help="number of ranks (default: the GPUs, else the cores)").tag(config=True)
    mpiexec = Unicode(None, allow_none=True, help="the MPI launcher").tag(config=True)
    mpi_args = Unicode("", help="more options for the launcher").tag(config=True)
    aliases = Dict(
        {
            **kernel_aliases,
            "n": "RanksKernelApp.size",
            "mpiexec": "RanksKernelApp.mpiexec",
            "mpi-args": "RanksKernelApp.mpi_args",
        }
    )
    shell: InteractiveShell

    def initialize(self, argv: list[str] | None = None) -> None:
        super().initialize(argv)
        self.shell.run_line_magic("load_ext", "nbpar")
        ranks.begin(self.world())

    def world(self) -> World:
        settings = Settings(size=self.size, mpiexec=self.mpiexec, mpi_args=self.mpi_args)
        return World(settings, self.shell.user_ns)
