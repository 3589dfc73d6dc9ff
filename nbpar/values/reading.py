"""Reads a message: patches known objects in place, enters new ones, tells what could not be rebuilt."""

from __future__ import annotations

import array
import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbpar.values.choice import learn_libraries
from nbpar.values.pool import Buffer, Chunk
from nbpar.values.table import Hole, Table, seed


@dataclass
class Read:
    """names: with their values. patched: numbers of the objects that were changed. failed: what could not be read and why.
    replaced: objects that could not be changed in place, each with the new one. left: objects that only the other side has now."""

    names: dict[str, Any] = field(default_factory=dict)
    patched: list[int] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    replaced: list[tuple[Any, Any]] = field(default_factory=list)
    left: list[Any] = field(default_factory=list)


def read(table: Table, stream: Buffer, new_numbers: bytes, vacated: Mapping[int, int], chunks: Sequence[Chunk]) -> Read:
    """Reads what `write` made, applies the patches and enters the new objects. What fails is told, and the rest is read."""
    learn_libraries()
    found = Read()
    patches: list[tuple[int, Any]] = []
    memo: dict[int, Any] = {}
    for unit in _units(table, bytes(stream), chunks, memo, found):
        if isinstance(unit, dict):
            found.names.update(unit)
            found.names.pop("", None)
        elif isinstance(unit[0], int):
            patches.append(unit)
        else:
            found.names[unit[0]] = unit[1]
    learn_libraries()
    old = {number: table.objs[number] for number in vacated}
    for number in vacated:
        table.vacate(number)
    for number, patch in sorted(patches, key=lambda entry: table.kinds[entry[0]].order):
        try:
            table.kinds[number].patch(table.objs[number], patch)
            found.patched.append(number)
        except Exception as error:
            what = f"of a {type(table.objs[number]).__name__}, {type(error).__name__}: {error}"
            found.failed.append(("", what))
    table.add(memo[number] for number in array.array("I", bytes(new_numbers)))
    found.replaced = [(old[number], table.objs[new]) for number, new in vacated.items() if new]
    found.left = [old[number] for number, new in vacated.items() if not new]
    for number, patch in patches:
        table.refresh(number, patch)
    for kind in {table.kinds[number] for number in found.patched}:
        kind.after_patches(table, found.patched)
    table.port.settled()
    return found


def _units(table: Table, stream: bytes, chunks: Sequence[Chunk], memo: dict[int, Any], found: Read) -> Iterator[Any]:
    """The pickles of a stream on one memo. One that fails is told, and skipped: its numbers are filled with holes."""
    if not stream:
        return
    objs, prefix = table.objs, bytes(table.prefix)
    begin = taken = 0
    while True:
        prefix += b"N."
        file = io.BytesIO(prefix + stream[begin:])
        unpickler = Unpickler(file, objs, iter(chunks[taken:]))
        unpickler.load()
        offset, position = begin - len(prefix), begin
        try:
            while position < len(stream):
                yield unpickler.load()
                position = file.tell() + offset
        except Exception as error:
            first, _, _, size = _extent(stream[position:], 1)
            found.failed.append((first, f"{type(error).__name__}: {error}"))
        memo.update(unpickler.memo.copy())
        if position == len(stream):
            return
        begin = position + size
        _, numbers, taken, _ = _extent(stream[:begin])
        objs = [memo.setdefault(number, Hole()) for number in range(len(table.objs) + numbers)]
        prefix = b"\x80\x05" + b"".join(map(seed, range(len(objs))))


def _extent(stream: bytes, units: int | None = None) -> tuple[str, int, int, int]:
    """Of the first units of a stream: the first text in it, how many objects and buffers it numbers, its length in bytes."""
    file, first, numbers, buffers = io.BytesIO(stream), "", 0, 0
    while file.tell() < len(stream) and units != 0:
        for code, argument, _ in pickletools.genops(file):
            numbers += code.name == "MEMOIZE"
            buffers += code.name == "NEXT_BUFFER"
            first = first or (argument if isinstance(argument, str) else "")
        units = None if units is None else units - 1
    return first, numbers, buffers, file.tell()


class Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objs: list[Any], chunks: Iterator[Chunk]) -> None:
        super().__init__(file, buffers=chunks)
        self.persistent_load = objs.__getitem__  # type: ignore[method-assign]
