"""Large buffers between processes of one host: segments, kept warm; without them, frames of the message.

The writer puts the buffers of a message into a segment, whatever the number of readers; these read straight into the memory that is
to hold the bytes.

A very large new buffer gets a segment of its own, which ranks map copy-on-write instead of copying it. Such a segment is lent:
it is not written again before every rank has let go of it.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from nbpar.values import memory
from nbpar.values.segment import Segment, map_stripes, read_stripes

IN_PICKLE = 1 << 15  # bytes; smaller buffers stay in the pickle
MAPPED = 1 << 22  # bytes; smaller buffers are copied by every reader
WARM = 1 << 30  # bytes of segments that are kept for the next message
Buffer = bytes | bytearray | memoryview
Maps = dict[int, mmap.mmap]


class Place(NamedTuple):
    """Where a buffer is: the paths of its segment's stripes, each of `stripe` bytes, or none for the next frame of the message.

    lent: its segment's number, or 0.
    """

    paths: tuple[str, ...]
    stripe: int
    offset: int
    size: int
    lent: int


class Chunk(Protocol):
    """One buffer of a message, not read yet."""

    @property
    def size(self) -> int: ...

    def into(self, address: int) -> None:
        """Copies it there."""

    def whole(self) -> Buffer:
        """A copy."""

    def mapped(self) -> mmap.mmap | None:
        """The buffer itself, copy-on-write; None where that cannot be had."""


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

    def mapped(self) -> None:
        return None


@dataclass(frozen=True)
class InFile:
    """A buffer in the sender's segment. maps: those that were mapped, by the segment's number; None: copy always."""

    files: Sequence[int]
    place: Place
    maps: Maps | None

    @property
    def size(self) -> int:
        return self.place.size

    def into(self, address: int) -> None:
        self._read(memory.view(address, self.size))

    def whole(self) -> Buffer:
        data = bytearray(self.size)
        self._read(memoryview(data))
        return data

    def mapped(self) -> mmap.mmap | None:
        if self.maps is None or not self.place.lent:
            return None
        return self.maps.setdefault(self.place.lent, map_stripes(self.files, self.place.stripe, self.size))

    def _read(self, target: memoryview) -> None:
        read_stripes(self.files, self.place.stripe, self.place.offset, target)


def chunk(buffer: Chunk | Buffer) -> Chunk:
    """A buffer as unpickling gives it: a chunk if it was large, else the bytes."""
    return Inline(memoryview(buffer)) if isinstance(buffer, bytes | bytearray | memoryview) else buffer


@dataclass
class Lent:
    segment: Segment
    holders: set[int] = field(default_factory=set)


class Pool:
    """One process's outgoing segments. shared=False: always frames, for readers on other hosts.

    readers: the ranks that may map what is lent to them.
    """

    def __init__(self, shared: bool = True, readers: Collection[int] = ()) -> None:
        self.shared = shared and sys.platform == "linux"
        self.readers = readers
        self._spare: list[Segment] = []
        self._in_use: list[Segment] = []  # until every reader has read the message
        self._lent: dict[int, Lent] = {}
        self._count = 0

    def write(self, buffers: Sequence[memoryview], lendable: Collection[int] = ()) -> list[Place]:
        """Places of the buffers. lendable: indices of those that readers may map."""
        frames = [Place((), 0, 0, buffer.nbytes, 0) for buffer in buffers]
        if not self.shared or not buffers:
            return frames
        lent: dict[int, Place] = {}
        try:
            for i in lendable:
                if self.readers and buffers[i].nbytes >= MAPPED:
                    lent[i] = self._lend(buffers[i])
            rest = [i for i in range(len(buffers)) if i not in lent]
            places = {**lent, **dict(zip(rest, self._together([buffers[i] for i in rest]), strict=True))}
        except OSError:
            for place in lent.values():
                del self._lent[place.lent]
            return frames
        return [places[i] for i in range(len(buffers))]

    def _lend(self, buffer: memoryview) -> Place:
        segment = self._segment(buffer.nbytes)
        segment.write(buffer, 0)
        self._count += 1
        self._lent[self._count] = Lent(segment, set(self.readers))
        return Place(segment.paths, segment.stripe, 0, buffer.nbytes, self._count)

    def _together(self, buffers: Sequence[memoryview]) -> list[Place]:
        total = sum(buffer.nbytes for buffer in buffers)
        if not total:
            return [Place((), 0, 0, 0, 0) for _ in buffers]
        segment = self._segment(total)
        self._in_use.append(segment)
        places, offset = [], 0
        for buffer in buffers:
            segment.write(buffer, offset)
            places.append(Place(segment.paths, segment.stripe, offset, buffer.nbytes, 0))
            offset += buffer.nbytes
        return places

    def _segment(self, size: int) -> Segment:
        """The smallest spare one that fits, unless it is far too large."""
        fitting = [segment for segment in self._spare if size <= segment.size <= 4 * size + MAPPED]
        if not fitting:
            return Segment(size)
        best = min(fitting, key=lambda segment: segment.size)
        self._spare.remove(best)
        return best

    def release(self) -> None:
        """Every reader has read the last message."""
        while self._in_use:
            self._keep(self._in_use.pop())

    def returned(self, reader: int, numbers: Iterable[int]) -> None:
        """A rank has let go of what was lent to it."""
        for number in numbers:
            lent = self._lent.get(number)
            if lent:
                lent.holders.discard(reader)
                if not lent.holders:
                    self._keep(self._lent.pop(number).segment)

    def _keep(self, segment: Segment) -> None:
        self._spare.append(segment)
        while sum(each.size for each in self._spare) > WARM:
            self._spare.pop(0).close()

    def close(self) -> None:
        """Gives everything back; readers that are not done keep what they have open."""
        self._spare, self._in_use, self._lent = [], [], {}


class Arrived:
    """The buffers of a message, in order, for the unpickler. As a context manager: it closes the files.

    maps: on ranks, takes what is mapped instead of copied.
    """

    def __init__(self, places: Iterable[Place], frames: Sequence[Buffer], maps: Maps | None = None) -> None:
        self._files: dict[str, int] = {}
        self._maps = maps
        rest = iter(frames)
        self.chunks: list[Chunk] = []
        for place in places:
            files = [self._file(path) for path in place.paths]
            self.chunks.append(InFile(files, place, maps) if files else Inline(memoryview(next(rest))))

    def _file(self, path: str) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]

    def __enter__(self) -> list[Chunk]:
        return self.chunks

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)
