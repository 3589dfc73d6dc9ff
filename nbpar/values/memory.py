"""Raw memory by address: what it holds, in 16 bytes, and a view of it; needs neither numpy nor torch."""

from __future__ import annotations

import ctypes
import mmap

from xxhash import xxh3_128_digest

from nbpar.values.untouched import untouched

LARGE = 1 << 24  # bytes; smaller memory is read faster than the system is asked about it


def view(address: int, size: int) -> memoryview:
    """The memory itself, writable, as bytes. The caller keeps its owner alive."""
    if not size:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def fingerprint(address: int, size: int) -> bytes:
    """Equal for equal bytes; different for different ones but for a chance of 2^-128."""
    memory = view(address, size)
    return xxh3_128_digest(memory) if size < LARGE else untouched.digest(address, size, lambda: xxh3_128_digest(memory))


def remember(file: mmap.mmap, address: int, size: int, digest: bytes) -> None:
    """New memory, where that file is mapped copy-on-write, not written since it came with that fingerprint."""
    if size >= LARGE:
        untouched.remember(file, address, size, digest)
