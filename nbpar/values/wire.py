"""A message as frames: a head, the pickle stream, and the large buffers unless they are in shared memory."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from nbpar.values.pool import Arrived, Buffer, Maps, Pool
from nbpar.values.reading import Read, read
from nbpar.values.table import Table
from nbpar.values.writing import Written

NO_BODY = "no body"


def frames(head: Any, written: Written, pool: Pool) -> list[Buffer]:
    """The buffers are views of the objects' own memory: they are to be sent before these change."""
    places = pool.write(written.buffers, written.lendable)
    envelope = head, written.new_numbers, written.vacated, places
    inline = [buffer for buffer, place in zip(written.buffers, places, strict=True) if not place.paths]
    return [pickle.dumps(envelope, 5), written.stream, *inline]


def bare(head: Any) -> list[Buffer]:
    """A head alone."""
    return [pickle.dumps((head, NO_BODY), 5)]


def head(message: Sequence[Buffer]) -> tuple[Any, tuple[Any, ...]]:
    """The head, and what is needed to read the body."""
    first, *rest = pickle.loads(message[0])
    return first, tuple(rest)


def heads(messages: Sequence[Sequence[Buffer]]) -> list[Any]:
    """The heads of many messages. Most ranks say the same: equal ones are read once, and are one object."""
    known: dict[bytes, Any] = {}
    found = []
    for first, *_ in messages:
        key = bytes(first)
        if key not in known:
            known[key] = head([key])[0]
        found.append(known[key])
    return found


def body(table: Table, message: Sequence[Buffer], envelope: tuple[Any, ...], maps: Maps | None = None) -> Read:
    """maps: on ranks, takes what is mapped instead of copied, by the segment's number."""
    new_numbers, vacated, places = envelope
    with Arrived(places, message[2:], maps) as chunks:
        return read(table, message[1], new_numbers, vacated, chunks)


def size(message: Sequence[Buffer], envelope: tuple[Any, ...] = ()) -> int:
    """Bytes that a message moves, shared memory included."""
    shared = sum(place.size for place in envelope[2] if place.paths) if len(envelope) == 3 else 0
    return shared + sum(memoryview(frame).nbytes for frame in message)
