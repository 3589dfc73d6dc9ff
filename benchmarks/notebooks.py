"""Real notebooks' kernels with two ranks behind them, driven alike: nbpar's and its peers'."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import ClassVar

from typing_extensions import Self

from benchmarks.harness import RANKS, Kernel, Outputs

BESIDE = str(Path(sys.executable).parent)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PATH": f"{BESIDE}{os.pathsep}{os.environ['PATH']}",
    "GLOO_SOCKET_IFNAME": "lo",  # ranks of one host
}


class Notebook(Kernel):
    """A kernel with a library loaded that runs cells on ranks. A subclass says what to type."""

    name: str
    load: str  # in a new kernel
    up: str  # starts the ranks
    down: str  # ends them
    magic: str = ""  # runs the cell below it on the ranks
    who = ""  # on the ranks: `rank`, and `total()`, an all-reduce of ones
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        super().__init__(env={**ENVIRONMENT, **self.environment})
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

    def text(self, cell: str, options: str = "") -> str:
        """What a person types to run a cell on the ranks."""
        return f"{self.magic} {options}\n{cell}"

    def on_ranks(self, cell: str, options: str = "") -> tuple[float, Outputs]:
        return self.run(self.text(cell, options))


BY_MPI = "from mpi4py import MPI\ncomm = MPI.COMM_WORLD\nrank = comm.rank\ndef total(): return comm.allreduce(1)\n"
BY_GLOO = """import torch, torch.distributed as dist
if not dist.is_initialized(): dist.init_process_group("gloo")
rank = dist.get_rank()
def total():
    one = torch.ones(1)
    dist.all_reduce(one)
    return int(one)
"""


class Nbpar(Notebook):
    name = "nbpar"
    load = "import nbpar, torch\n%load_ext nbpar"
    up = f"%parallel start -n {RANKS}"
    down = "%parallel stop"
    magic = "%%parallel"
    who = BY_MPI


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
    who = BY_MPI


class Accelerate(Notebook):
    """notebook_launcher forks the kernel for a function, and the ranks end with it; the cell is that function's body."""

    name = "accelerate's notebook_launcher"
    load = "import torch\nfrom accelerate import notebook_launcher"
    up = down = "pass"
    who = BY_GLOO

    def text(self, cell: str, options: str = "") -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            launch = f"notebook_launcher(cell, num_processes={RANKS}, use_port='{free.getsockname()[1]}')"
        return f"def cell():\n{indent(cell, '    ')}\n{launch}"


class JupyterDistributed(Notebook):
    """The kernel stands for two kernels: every cell runs in both, and nowhere else. Without its page it shows text."""

    name = "jupyter-distributed"
    module = "jupyter_distributed.kernel"
    interrupt_mode = "message"
    environment: ClassVar[Mapping[str, str]] = {
        "JUPYTER_DISTRIBUTED_BASE_KERNEL": "python3",
        "JUPYTER_DISTRIBUTED_WORLD_SIZE": str(RANKS),
    }
    load = up = down = "pass"
    who = BY_GLOO

    def text(self, cell: str, options: str = "") -> str:
        return cell


PEERS = (Ipyparallel, Accelerate, JupyterDistributed)
