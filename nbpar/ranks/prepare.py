"""What a rank sets up before its first cell: who it is, its device, its random streams, its traces in the system."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # SLURM_NTASKS is the allocation's, not srun's
LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
LAUNCHERS = ("PMI", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_")  # beginnings
LAUNCHED = "NBPAR_LAUNCHED"  # environment variable of a kernel that came with its ranks: their number, and on one host or many


def rank_from_launcher() -> int:
    """This process's rank, from what the launcher set; 0 where it set nothing."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)


def size_from_launcher() -> int:
    """How many processes the launcher started with this one; 1 where none did."""
    return next((int(os.environ[name]) for name in SIZE_VARIABLES if name in os.environ), 1)


def hosts_from_launcher() -> str:
    """'one' or 'many': the hosts on which the launcher started processes."""
    local = next((int(os.environ[name]) for name in LOCAL_SIZE_VARIABLES if name in os.environ), size_from_launcher())
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    return "many" if nodes > 1 or local < size_from_launcher() else "one"


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nothing says that a launcher started this process."""
    return {name: value for name, value in environment.items() if not name.startswith(LAUNCHERS)}


# For how long a thread that has done its part of a product keeps its core, looking out for the next part: by itself up to 20 ms in
# GNU's OpenMP, 200 in LLVM's. Here half a millisecond: the core may be one that another rank has lent.
SPIN = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}


def local_size() -> int:
    """Ranks on this host, from what the launcher set; all of them where it set nothing."""
    names = (*LOCAL_SIZE_VARIABLES, "SLURM_NTASKS_PER_NODE", "NBPAR_SIZE")
    return next(int(os.environ[name]) for name in names if name in os.environ)


def share_cores() -> int:
    """Threads of this rank, so that the ranks of this host use its cores once. Set before a library starts any."""
    from nbpar.ranks import machine

    threads = int(os.environ.get("SLURM_CPUS_PER_TASK") or machine.threads(local_size()))
    os.environ.update({f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")})
    for name, value in SPIN.items():
        os.environ.setdefault(name, value)
    return threads


def prepare_device() -> str:
    """The device that this rank computes on by default; GPUs are shared out by local rank."""
    import torch

    if os.environ.get("NBPAR_DEVICE") != "cuda":
        return "cpu"
    names = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
    local = next((int(os.environ[name]) for name in names if name in os.environ), rank_from_launcher())
    index = local % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def unlink_shared_memory(world: Any) -> None:
    """MPICH's shared memory loses its name once all ranks have it: a rank that is killed then leaves nothing in /dev/shm."""
    world.barrier()
    try:
        with open("/proc/self/maps") as maps:
            names = {line.split(maxsplit=5)[-1].strip() for line in maps if "/dev/shm/mpich_shm_" in line}
    except OSError:
        return
    for name in names:
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


def unlink_memory_of_the_dead(rank: int) -> None:
    """MPICH names its shared memory by the id of its launcher, this process's parent. One with the same id, long gone, may have
    left that name when it was killed while it started: MPI would then not begin. To be called before MPI begins."""
    if rank == 0:  # which makes the memory; the others wait for it
        name = fnv1a(f"kvs_{os.getppid()}_0".encode())
        with suppress(OSError):
            os.unlink(f"/dev/shm/mpich_shm_{name:x}_0")


def fnv1a(data: bytes) -> int:
    """The 32-bit hash FNV-1a (Fowler, Noll and Vo), by which MPICH shortens the name of a job."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def clock_ahead(world: Any) -> float:
    """Seconds by which this rank's clock is ahead of rank 0's: clocks of different hosts begin anywhere. Collective.

    Good to the time that a barrier takes to let all ranks go.
    """
    for _ in range(3):  # the first ones open connections
        world.barrier()
        now = time.perf_counter()
    return now - float(world.bcast(now))


def seed_everything(seed: int) -> None:
    """Outside lockstep cells each rank has a random stream of its own."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
