"""Run a function on N real MPI ranks and bring its results back: `run_ranks(2, program, *args) -> [result of rank 0, …]`.

The function must live in an importable module. It is called as `program(*args)` after torch's default process group exists.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbpar.ranks.prepare import SPIN

ROOT = Path(__file__).resolve().parents[1]


def mpiexec() -> str:
    """The launcher beside the running interpreter (the `mpich` wheel), else the one on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else "mpiexec"


def run_ranks(size: int, program: Callable[..., Any], *args: Any, backend: str = "mpi", timeout: float = 120) -> list[Any]:
    """Results of `program(*args)` by rank. Raises RuntimeError with the ranks' output if any of them fails or hangs."""
    with tempfile.TemporaryDirectory(prefix="nbpar-test-") as folder:
        target = f"{program.__module__}:{program.__qualname__}"
        Path(folder, "args").write_bytes(pickle.dumps(args))
        env = {**SPIN, **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        command = [mpiexec(), "-n", str(size), sys.executable, "-m", "tests.ranks", target, folder, backend]
        ranks = subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            output, _ = ranks.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(ranks.pid, signal.SIGKILL)
            output, _ = ranks.communicate()
            raise RuntimeError(f"{target} on {size} ranks ran past {timeout} s:\n{output}") from None
        if ranks.returncode:
            raise RuntimeError(f"{target} on {size} ranks ended with {ranks.returncode}:\n{output}")
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(size)]


def main(target: str, folder: str, backend: str) -> None:
    import importlib

    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    torch.set_num_threads(1)
    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    if backend == "mpi":
        from nbpar import comm

        comm.join(MPI.COMM_WORLD)
    elif backend == "gloo":
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    module, _, name = target.partition(":")
    result = getattr(importlib.import_module(module), name)(*pickle.loads(Path(folder, "args").read_bytes()))
    Path(folder, f"result{rank}").write_bytes(pickle.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
