"""A message as frames: a head, the pickle stream, and the large buffers unless they are in shared memory."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from nbpar.values.message import Read, Written, read
from nbpar.values.pool import Arrived, Buffer, Pool
from nbpar.values.table import Table

NO_BODY = "no body"


def frames(head: Any, written: Written, pool: Pool) -> list[Buffer]:
    """The buffers are views of the objects' own memory: they are to be sent before these change."""
    path = pool.write(written.buffers) if written.buffers else None
    sizes = [buffer.nbytes for buffer in written.buffers]
    envelope = head, written.new_numbers, written.vacated, path, sizes
    return [pickle.dumps(envelope, 5), written.stream, *(written.buffers if path is None else ())]


def bare(head: Any) -> list[Buffer]:
    """A head alone."""
    return [pickle.dumps((head, NO_BODY), 5)]


def head(message: Sequence[Buffer]) -> tuple[Any, tuple[Any, ...]]:
    """The head, and what is needed to read the body."""
    first, *rest = pickle.loads(message[0])
    return first, tuple(rest)


def body(table: Table, message: Sequence[Buffer], envelope: tuple[Any, ...]) -> Read:
    new_numbers, vacated, path, sizes = envelope
    with Arrived(path, sizes, message[2:]) as chunks:
        return read(table, message[1], new_numbers, vacated, chunks)


def size(message: Sequence[Buffer], envelope: tuple[Any, ...] = ()) -> int:
    """Bytes that a message moves, shared memory included."""
    shared = sum(envelope[3]) if len(envelope) == 4 and envelope[2] is not None else 0
    return shared + sum(memoryview(frame).nbytes for frame in message)
