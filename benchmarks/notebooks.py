"""Two real notebooks' kernels with two ranks behind them, driven alike: nbpar's, and ipyparallel's with MPI engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from typing_extensions import Self

from benchmarks.harness import RANKS, Kernel, Outputs

BESIDE = str(Path(sys.executable).parent)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": f"{BESIDE}{os.pathsep}{os.environ['PATH']}"}


class Notebook(Kernel):
    """A kernel with a library loaded that runs cells on ranks. A subclass says what to type."""

    name: str
    load: str  # in a new kernel
    up: str  # starts the ranks
    down: str  # ends them
    magic: str  # runs the cell below it on the ranks

    def __init__(self) -> None:
        super().__init__(env=ENVIRONMENT)
        self.connected = False

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.run(self.load)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.disconnect()
        finally:
            self.stop()

    def connect(self) -> float:
        """Seconds that starting the ranks takes."""
        self.connected = True
        return self.run(self.up)[0]

    def disconnect(self) -> None:
        if self.connected:
            self.run(self.down)
        self.connected = False

    def on_ranks(self, cell: str, options: str = "") -> tuple[float, Outputs]:
        return self.run(f"{self.magic} {options}\n{cell}")


class Nbpar(Notebook):
    name = "nbpar"
    load = "import nbpar, torch\n%load_ext nbpar"
    up = f"%parallel start -n {RANKS}"
    down = "%parallel stop"
    magic = "%%parallel"


class Ipyparallel(Notebook):
    name = "ipyparallel (MPI engines)"
    load = "import ipyparallel, torch"
    up = f"""
cluster = ipyparallel.Cluster(n={RANKS}, engines="mpi", log_level=40)
client = cluster.start_and_connect_sync(n={RANKS}, activate=True)
view = client[:]
"""
    down = "client.close(); cluster.stop_cluster_sync()"
    magic = "%%px"
