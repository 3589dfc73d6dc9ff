"""What glibc does with memory that a process has freed; tensors on the CPU lie in it. Without glibc nothing happens here."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), and the largest threshold that it takes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 1 << 25


def keep() -> None:
    """What is freed is kept for what is made next.

    By itself glibc gives it back as soon as enough of it lies together. A training step, which frees all its activations at its
    end, then begins with thousands of page faults.
    """
    keep_blocks(LARGEST)
    call("mallopt", TRIM_THRESHOLD, -1)


def keep_blocks(size: int) -> None:
    """Memory above this size is the system's again as soon as it is free. glibc learns to keep larger and larger blocks, and
    what lies between those that were dropped would be lost."""
    call("mallopt", MMAP_THRESHOLD, size)


def give_back() -> None:
    """The system gets what is free: some 0.1 ms a MiB of it."""
    call("malloc_trim", 0)


def call(name: str, *numbers: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*numbers)
