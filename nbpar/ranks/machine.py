"""What this host offers: cores, GPUs, and the number of ranks that follows from them."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores that this process may use: physical ones where the system tells, at most those in its affinity mask and CPU quota."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    logical = psutil.cpu_count() or allowed
    share = max(1, round(allowed * physical / logical))
    return max(1, min(share, quota() or share))


def quota() -> int | None:
    """Whole cores in the cgroup's CPU quota (containers), or None."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(1, int(limit) // int(period))


def free_memory() -> int:
    """Bytes that processes here can still get: of this host, at most what the cgroup (containers) allows."""
    import psutil

    free: int = psutil.virtual_memory().available
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{what}").read_text().strip() for what in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


def gpus() -> int:
    """NVIDIA GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    folder = Path("/proc/driver/nvidia/gpus")
    present = len(list(folder.iterdir())) if folder.is_dir() else 0
    return present if visible is None else min(present, len([d for d in visible.split(",") if d.strip()]))


def allow_files(count: int) -> None:
    """Lets this process have so many files and connections open, as far as the system lets it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def default_size() -> int:
    """Ranks when nobody says: the GPUs, else the cores, and at least two, for one rank splits nothing."""
    return max(2, gpus() or cores())


def threads(size: int) -> int:
    """Threads for each of `size` ranks, so that together they use the cores once."""
    return max(1, cores() // size)
