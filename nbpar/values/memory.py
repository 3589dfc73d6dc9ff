"""Raw memory by address: what it holds, in 16 bytes, and a view of it; needs neither numpy nor torch. And that of lists."""

from __future__ import annotations

import ctypes
import mmap
import operator
import sys
from typing import Any

from xxhash import xxh3_128_digest

from nbpar.values.untouched import untouched

LARGE = 1 << 24  # bytes; smaller memory is read faster than the system is asked about it
POINTER = ctypes.sizeof(ctypes.c_void_p)
LONG = 128  # items; shorter lists are compared faster one by one


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


def same_items(a: list[Any], b: list[Any]) -> bool:
    """Whether two lists hold the very same objects. CPython's pointers to them are compared as bytes: 40 times as fast."""
    if len(a) != len(b):
        return False
    if len(a) < LONG or sys.implementation.name != "cpython":
        return all(map(operator.is_, a, b))
    return not ctypes.PyDLL(None).memcmp(items(a), items(b), ctypes.c_size_t(len(a) * POINTER))  # nobody changes them meanwhile


def items(o: list[Any]) -> ctypes.c_void_p:
    """Where a list's pointers are: its last fields are that, and for how many there is room."""
    return ctypes.c_void_p.from_address(id(o) + list.__basicsize__ - 2 * POINTER)
