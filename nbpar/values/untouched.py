"""Memory that nobody has written since its digest was taken: Linux knows, so the digest need not be taken again.

protect   userfaultfd write-protects the pages; a write lifts that from its page, without a signal or a message
look      PAGEMAP_SCAN on /proc/self/pagemap tells whether any page of a range was lifted

A file that is mapped copy-on-write needs no protection: a page that was written is none of the file's any more. So a rank need not
touch what the notebook lent before the cell reads it.

It needs Linux 6.7; elsewhere, and for memory that other processes may write, digests are taken each time. A page's first write
after `protect` costs about a microsecond: what was found written is not protected again before it is found at rest. Sources:
the kernel's admin-guide/mm/userfaultfd and admin-guide/mm/pagemap.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import sys
import weakref
from collections.abc import Callable
from typing import NamedTuple

PAGE = mmap.PAGESIZE
KEPT = 4096  # ranges remembered
SYSCALL = {"x86_64": 323, "aarch64": 282}  # userfaultfd
FLAGS = os.O_CLOEXEC | 1 if hasattr(os, "O_CLOEXEC") else 1  # UFFD_USER_MODE_ONLY: allowed to everyone
API, REGISTER, WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
UNPOPULATED, ASYNC = 1 << 13, 1 << 15  # features: also pages that are not there yet; writes lift the protection by themselves
PROTECT_MODE = 1 << 1
SCAN = 0xC0606610
ONLY_PROTECTED = 1 << 1  # fail where a range is not registered (any more)
WRITTEN, OF_FILE, PRESENT, SWAPPED = (1 << bit for bit in (1, 2, 3, 4))
# How to look: flags of the question; what a page must not be, must be (inverted by the former), and must be some of.
LIFTED = ONLY_PROTECTED, 0, WRITTEN, 0
COPIED = 0, OF_FILE, OF_FILE, PRESENT | SWAPPED


class Known(NamedTuple):
    """digest: of all; beside: what was at its edges; look: how to find out whether it was written."""

    digest: bytes
    beside: bytes
    look: tuple[int, int, int, int] = LIFTED


class Untouched:
    """The digests of this process's memory by address and size. One for the process: memory has no other owner."""

    def __init__(self) -> None:
        self._process = 0  # whose memory the descriptors are about: not a forked child's
        self._faults = self._pagemap = -1
        self._digests: dict[tuple[int, int], Known] = {}
        self._written: dict[tuple[int, int], bytes] = {}  # not protected: its digest the last time

    def digest(self, address: int, size: int, take: Callable[[], bytes]) -> bytes:
        """Of some pages at least. take() for that memory, or what it gave the last time if nobody has written there since."""
        key = address, size
        if not self._open():
            return take()
        if key in self._written:
            return self._look_again(key, take())
        begin, end = pages(address, size)
        known = self._digests.pop(key, None)
        beside = edges(address, size)
        try:
            if known is not None and (known.beside != beside or self._touched(begin, end, known.look)):
                self._written[key] = digest = take()
                return digest
        except OSError:
            known = None  # other memory at the same address
        if known is None:
            if not self._protect(begin, end):
                return take()
            known = Known(take(), beside)  # after the protection: what is written meanwhile is seen the next time
        self._keep(key, known)
        return known.digest

    def _look_again(self, key: tuple[int, int], digest: bytes) -> bytes:
        """Memory that was written once, and not since the last time, is protected from the next time on."""
        if self._written[key] == digest:
            del self._written[key]
        else:
            self._written[key] = digest
        return digest

    def remember(self, file: mmap.mmap, address: int, size: int, digest: bytes) -> None:
        """That memory, where a file is mapped copy-on-write that nobody writes, is new and has that digest."""
        key = address, size
        if self._open():
            self._forget(key)
            self._keep(key, Known(digest, edges(address, size), COPIED))
            weakref.finalize(file, self._forget, key)

    def _forget(self, key: tuple[int, int]) -> None:
        self._digests.pop(key, None)
        self._written.pop(key, None)

    def close(self) -> None:
        """Lifts all protection."""
        if self._process == os.getpid() and self._faults >= 0:
            os.close(self._faults)
            os.close(self._pagemap)
        self._process = 0

    def _keep(self, key: tuple[int, int], known: Known) -> None:
        if len(self._digests) + len(self._written) > KEPT:
            self._digests.clear()
            self._written.clear()
        self._digests[key] = known

    def _open(self) -> bool:
        """Whether the system can do it."""
        if self._process == os.getpid():
            return self._faults >= 0
        self._process, self._faults = os.getpid(), -1
        self._digests, self._written = {}, {}
        number = SYSCALL.get(platform.machine()) if sys.platform == "linux" else None
        if number is None:
            return False
        faults = ctypes.CDLL(None).syscall(number, FLAGS)
        try:
            fcntl.ioctl(faults, API, struct.pack("3Q", 0xAA, UNPOPULATED | ASYNC, 0))
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._faults = faults
        except (OSError, ValueError):  # an old kernel, or a container that allows none of this
            if faults >= 0:
                os.close(faults)
        return self._faults >= 0

    def _protect(self, begin: int, end: int) -> bool:
        if not private(begin, end):
            return False
        try:
            fcntl.ioctl(self._faults, REGISTER, struct.pack("4Q", begin, end - begin, PROTECT_MODE, 0))
            fcntl.ioctl(self._faults, WRITEPROTECT, struct.pack("3Q", begin, end - begin, 1))
        except OSError:
            return False
        return True

    def _touched(self, begin: int, end: int, look: tuple[int, int, int, int]) -> bool:
        """Raises OSError if this memory is not the one that was protected."""
        found = (ctypes.c_uint64 * 3)()
        flags, inverted, every, some = look
        question = struct.pack("12Q", 96, flags, begin, end, 0, ctypes.addressof(found), 1, 1, inverted, every, some, every | some)
        return fcntl.ioctl(self._pagemap, SCAN, bytearray(question)) > 0


def pages(address: int, size: int) -> tuple[int, int]:
    """Where the pages begin and end that hold nothing but this memory."""
    return -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE


def edges(address: int, size: int) -> bytes:
    """What is before and after those pages, on pages that others write to."""
    begin, end = pages(address, size)
    return ctypes.string_at(address, begin - address) + ctypes.string_at(end, address + size - end)


def private(begin: int, end: int) -> bool:
    """Whether nobody else can write there: memory of this process alone, or its own copy of what the notebook lent."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
            first, last = (int(part, 16) for part in addresses.split("-"))
            if last <= begin:
                continue
            if first > begin:
                return False
            if permissions[3] != "p" or (name and not name[0].startswith(("[", "/memfd:nbpar"))):
                return False
            if last >= end:
                return True
            begin = last
    return False


untouched = Untouched()
