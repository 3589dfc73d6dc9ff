"""Two real notebooks' kernels with two ranks behind them, driven alike: nbpar's, and ipyparallel's with MPI engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RANKS, Kernel, Outputs

BESIDE = str(Path(sys.executable).parent)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": f"{BESIDE}{os.pathsep}{os.environ['PATH']}"}


class Nbpar(Kernel):
    """nbpar in a notebook: `on_ranks` runs a `%%parallel` cell on all of them."""

    name = "nbpar"

    def __init__(self) -> None:
        super().__init__(env=ENVIRONMENT)

    def prepare(self) -> None:
        self.run("import nbpar, torch\n%load_ext nbpar")

    def connect(self) -> float:
        """Seconds that the command to start the ranks takes."""
        return self.run(f"%parallel start -n {RANKS}")[0]

    def disconnect(self) -> None:
        self.run("%parallel stop")

    def on_ranks(self, cell: str, options: str = "") -> tuple[float, Outputs]:
        return self.run(f"%%parallel {options}\n{cell}")

    def __enter__(self) -> Any:
        self.start()
        self.prepare()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.disconnect()
        finally:
            self.stop()


class Ipyparallel(Nbpar):
    """ipyparallel with its MPI engine launcher: `on_ranks` runs a `%%px` cell."""

    name = "ipyparallel (MPI engines)"

    def prepare(self) -> None:
        self.run("import ipyparallel, torch")

    def connect(self) -> float:
        start = (
            f"cluster = ipyparallel.Cluster(n={RANKS}, engines='mpi', log_level=40)\n"
            f"client = cluster.start_and_connect_sync(n={RANKS}, activate=True)\n"
            "view = client[:]"
        )
        return self.run(start)[0]

    def disconnect(self) -> None:
        self.run("client.close(); cluster.stop_cluster_sync()")

    def on_ranks(self, cell: str, options: str = "") -> tuple[float, Outputs]:
        return self.run(f"%%px {options}\n{cell}")
