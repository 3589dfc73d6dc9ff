"""A rank's output on its way out: Python's streams, C-level writes and rich display, in one queue, in order.

Python-level writes go into the queue directly; file descriptors 1 and 2 are pipes for everything below Python (C libraries, shell
commands). Before Python text is queued the pipes are emptied, so that what a thread wrote through C first also comes first.
The I/O thread takes the queue and sends it. A flood waits for the reader instead of filling memory.
"""

from __future__ import annotations

import codecs
import io
import os
import threading
from typing import Any

Item = tuple[str, Any]  # ("stdout" | "stderr", text) or ("display" | "clear", header)
LIMIT = 8 << 20  # characters that may wait


class Outlet:
    """The queue. `wake` is a descriptor that becomes readable when something waits; `produced` counts what was ever queued."""

    def __init__(self) -> None:
        self.wake, self._waker = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self._waker, False)
        self.produced = 0
        self._items: list[Item] = []
        self._waiting = 0
        self._midline = False
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._pipes: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}
        self._silent = False

    def nudge(self) -> None:
        """Wakes the reader though nothing waits."""
        try:
            os.write(self._waker, b"1")
        except BlockingIOError:
            pass

    @property
    def descriptors(self) -> list[int]:
        return [self.wake, *self._pipes]

    def capture(self, descriptor: int, stream: str) -> None:
        """Makes `descriptor` (1 or 2) a pipe into this queue."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.dup2(writer, descriptor)
        os.close(writer)
        self._pipes[reader] = (stream, codecs.getincrementaldecoder("utf-8")("replace"))

    def silence(self) -> None:
        """In a copy of the process, which has no reader and may have got the lock locked: from now on nothing is taken."""
        self._silent = True

    def put(self, name: str, value: Any) -> None:
        if self._silent:
            return
        with self._lock:
            if not self._midline:  # once a line is enough, and a line is many small writes
                self.drain()
            self._midline = isinstance(value, str) and not value.endswith("\n")
            self._append(name, value)
            while self._waiting > LIMIT and not self._room.wait(0.2):
                pass

    def drain(self) -> None:
        """Takes what the pipes hold."""
        with self._lock:
            for reader, (stream, decoder) in self._pipes.items():
                while True:
                    try:
                        data = os.read(reader, 1 << 16)
                    except BlockingIOError:
                        break
                    if not data:
                        break
                    self._append(stream, decoder.decode(data))

    def _append(self, name: str, value: Any) -> None:
        size = len(value) if isinstance(value, str) else 1
        if not size:
            return
        self._items.append((name, value))
        self.produced += size
        self._waiting += size
        if len(self._items) == 1:
            try:
                os.write(self._waker, b"1")
            except BlockingIOError:
                pass

    def take(self) -> list[Item]:
        """All that waits, texts of one stream joined."""
        with self._lock:
            try:
                os.read(self.wake, 4096)
            except BlockingIOError:
                pass
            items, self._items, self._waiting = self._items, [], 0
            self._room.notify_all()
        joined: list[Item] = []
        texts: list[str] = []
        for index, (name, value) in enumerate(items):
            if not isinstance(value, str):
                joined.append((name, value))
                continue
            texts.append(value)
            if index + 1 == len(items) or items[index + 1][0] != name:
                joined.append((name, "".join(texts)))
                texts.clear()
        return joined


class Stream(io.TextIOBase):
    """sys.stdout or sys.stderr of a rank."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, outlet: Outlet, name: str, descriptor: int) -> None:
        self._outlet, self._name, self._descriptor = outlet, name, descriptor
        self._buffer: io.BufferedIOBase | None = None

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    @property
    def buffer(self) -> io.BufferedIOBase:
        """For programs that write bytes: straight to the pipe."""
        if self._buffer is None:
            self._buffer = open(self._descriptor, "wb", buffering=0, closefd=False)  # type: ignore[assignment]
        return self._buffer  # type: ignore[return-value]

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._outlet.put(self._name, text)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Stays open: the rank's stream outlives what a cell does to it."""
