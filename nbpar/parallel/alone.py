"""In lockstep a program meets what it meets in one process: no process group that is ready, none of a launcher's variables.

Else libraries that share out work by themselves where they find other processes (trainers, samplers, metrics) would do so too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from nbpar.parallel.patch import patched
from nbpar.ranks.prepare import LAUNCHERS

TORCHS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def alone() -> Iterator[None]:
    """The program's code runs. What it sets in the environment stays."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(LAUNCHERS) or name in TORCHS}
    for name in hidden:
        del os.environ[name]
    try:
        with patched(dist, "is_initialized", lambda _: lambda: False):
            yield
    finally:
        for name, value in hidden.items():
            os.environ.setdefault(name, value)


@contextmanager
def together() -> Iterator[None]:
    """Code of torch's own runs, which is to find the ranks."""
    with patched(dist, "is_initialized", lambda _: c10d.is_initialized):
        yield
