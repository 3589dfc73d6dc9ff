"""Large buffers between processes of one host: a file without a name, kept warm; without one, frames of the message.

The writer puts all buffers of a message into its segment, whatever the number of readers; these open it by the writer's
/proc entry and read straight into the memory that is to hold the bytes. Nothing is mapped for writing, so a file system that
is too small is an error at `posix_fallocate` and never a SIGBUS, and nothing has a name that could outlive a killed process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nbpar.values import memory

IN_PICKLE = 1 << 15  # bytes; smaller buffers stay in the pickle
WARM = 1 << 30  # bytes; a larger segment is given back after use
Buffer = bytes | bytearray | memoryview


class Chunk(Protocol):
    """One buffer of a message, not read yet."""

    @property
    def size(self) -> int: ...

    def into(self, address: int) -> None: ...

    def whole(self) -> Buffer: ...


@dataclass(frozen=True)
class Inline:
    """A buffer that came as a frame, or within the pickle."""

    data: memoryview

    @property
    def size(self) -> int:
        return self.data.nbytes

    def into(self, address: int) -> None:
        memory.view(address, self.size)[:] = self.data

    def whole(self) -> Buffer:
        return bytearray(self.data)


@dataclass(frozen=True)
class InFile:
    """A buffer in the sender's segment."""

    file: int
    offset: int
    size: int

    def into(self, address: int) -> None:
        self._read(memory.view(address, self.size))

    def whole(self) -> Buffer:
        data = bytearray(self.size)
        self._read(memoryview(data))
        return data

    def _read(self, target: memoryview) -> None:
        done = 0
        while done < self.size:
            count = os.preadv(self.file, [target[done:]], self.offset + done)
            if not count:
                raise OSError("the sender's segment ended early")
            done += count


def chunk(buffer: Chunk | Buffer) -> Chunk:
    """A buffer as unpickling gives it: a chunk if it was large, else the bytes."""
    return Inline(memoryview(buffer)) if isinstance(buffer, bytes | bytearray | memoryview) else buffer


class Pool:
    """One process's outgoing segment. `shared=False`: always frames, for readers on other hosts."""

    def __init__(self, shared: bool = True) -> None:
        self.shared = shared and sys.platform == "linux"
        self._file: int | None = None
        self._size = 0

    def write(self, buffers: Sequence[memoryview]) -> str | None:
        """The segment's path for other processes of this user, with the buffers in it one after the other; None: no room."""
        total = sum(buffer.nbytes for buffer in buffers)
        if not self.shared or not total or not self._reserve(total):
            return None
        assert self._file is not None
        offset = 0
        for buffer in buffers:
            done = 0
            while done < buffer.nbytes:
                done += os.pwrite(self._file, buffer[done:], offset + done)
            offset += done
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def _reserve(self, size: int) -> bool:
        if self._file is not None and self._size >= size:
            return True
        self.close()
        for make in (memfd, in_dev_shm, in_tmp):
            try:
                self._file = make()
                os.posix_fallocate(self._file, 0, size)
            except OSError:
                self.close()
            else:
                self._size = size
                return True
        return False

    def release(self) -> None:
        """Every reader is done: the segment may be written again, or is given back if it is very large."""
        if self._size > WARM:
            self.close()

    def close(self) -> None:
        """Gives the segment back. A process that still has it open goes on reading what it held."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = None, 0

    def __del__(self) -> None:
        self.close()


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


class Arrived:
    """The buffers of a message, in order, for the unpickler. Use as a context manager: it closes the segment."""

    def __init__(self, path: str | None, sizes: Iterable[int], frames: Sequence[Buffer]) -> None:
        self._file = None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.chunks: list[Chunk] = []
        offset = 0
        for i, size in enumerate(sizes):
            self.chunks.append(Inline(memoryview(frames[i])) if self._file is None else InFile(self._file, offset, size))
            offset += size

    def __enter__(self) -> list[Chunk]:
        return self.chunks

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
