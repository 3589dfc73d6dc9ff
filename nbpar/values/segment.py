"""Files without names, which other processes of this host open by this process's /proc entry.

Nothing is mapped for writing, so that a file system which is too small is an error at `posix_fallocate` and never a SIGBUS, and no
name is left that could outlive a killed process. Linux lets one thread at a time write to a file, and new memory takes longer to be
had than to be filled: a large segment is several files, its stripes, which are filled at the same time.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

T = TypeVar("T")
STRIPED = 1 << 25  # bytes; smaller segments are one file
STRIPES = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
MAP_FIXED = 0x10


class Piece(NamedTuple):
    """What one stripe holds of a buffer: bytes begin to end of it, `at` in the stripe's file."""

    stripe: int
    at: int
    begin: int
    end: int


def pieces(stripe: int, offset: int, size: int) -> Iterator[Piece]:
    """Of a buffer of that size at an offset in a segment. stripe: bytes of each file."""
    done = 0
    while done < size:
        number, at = divmod(offset + done, stripe)
        end = min(size, done + stripe - at)
        yield Piece(number, at, done, end)
        done = end


class Segment:
    """Reserved up to its size. stripe: bytes of each of its files. Raises OSError where there is no room anywhere."""

    def __init__(self, size: int) -> None:
        count = STRIPES if size >= STRIPED else 1
        self.size, self.stripe = size, size if count == 1 else -(-size // (count * mmap.PAGESIZE)) * mmap.PAGESIZE
        self.files: list[int] = []
        for make in (memfd, in_dev_shm, in_tmp):
            try:
                while len(self.files) < count:
                    self.files.append(make())
                at_once(lambda file: os.posix_fallocate(file, 0, self.stripe), self.files)
                return
            except OSError:
                self.close()
        raise OSError(f"no room for a segment of {size} bytes")

    def write(self, buffer: memoryview, offset: int) -> None:
        def fill(piece: Piece) -> None:
            begin, at = piece.begin, piece.at
            while begin < piece.end:
                count = os.pwrite(self.files[piece.stripe], buffer[begin : piece.end], at)
                begin, at = begin + count, at + count

        at_once(fill, pieces(self.stripe, offset, buffer.nbytes))

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(f"/proc/{os.getpid()}/fd/{file}" for file in self.files)

    def close(self) -> None:
        """A process that still has it open, or mapped, goes on with what it holds."""
        while self.files:
            os.close(self.files.pop())

    def __del__(self) -> None:
        self.close()


def at_once(work: Callable[[T], None], items: Iterable[T]) -> None:
    """A thread for each, and none for a single one. Raises what the first of them raised."""
    tasks = list(items)
    if len(tasks) < 2:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(len(tasks)) as threads:
        list(threads.map(work, tasks))


def read_stripes(files: Sequence[int], stripe: int, offset: int, target: memoryview) -> None:
    """Fills the target from there on. Raises OSError where the segment is shorter."""
    for piece in pieces(stripe, offset, target.nbytes):
        begin, at = piece.begin, piece.at
        while begin < piece.end:
            count = os.preadv(files[piece.stripe], [target[begin : piece.end]], at)
            if not count:
                raise OSError("the sender's segment ended early")
            begin, at = begin + count, at + count


def map_stripes(files: Sequence[int], stripe: int, size: int) -> mmap.mmap:
    """The segment's first `size` bytes, copy-on-write."""
    if size <= stripe:
        return mmap.mmap(files[0], size, access=mmap.ACCESS_COPY)
    whole = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the addresses; it gives all back when it goes
    address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    for piece in pieces(stripe, 0, size):
        place = address + piece.begin
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
        if libc_mmap()(place, piece.end - piece.begin, protection, flags, files[piece.stripe], 0) != place:
            raise OSError(ctypes.get_errno(), "a segment could not be mapped")
    return whole


def libc_mmap() -> Callable[..., int | None]:
    """Python's own maps no file where another map is."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    return function


def memfd() -> int:
    return os.memfd_create("nbpar", os.MFD_CLOEXEC)


def in_dev_shm() -> int:
    return nameless("/dev/shm")


def in_tmp() -> int:
    return nameless(tempfile.gettempdir())


def nameless(folder: str) -> int:
    file, name = tempfile.mkstemp(prefix="nbpar-", dir=folder)
    os.unlink(name)
    return file
