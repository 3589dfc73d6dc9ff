"""Whether memory was written since its digest was taken: never "no" when it was, by whatever way."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from xxhash import xxh3_128_digest

from nbpar.values import memory
from nbpar.values.untouched import Untouched, untouched

SIZE = 17 << 20


@pytest.fixture
def watch() -> Iterator[Untouched]:
    untouched.close()  # the system lets one at a time watch a piece of memory
    watch = Untouched()
    yield watch
    watch.close()


class Taken:
    """Takes digests of an array, and counts them."""

    def __init__(self, watch: Untouched, array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        self.watch, self.array, self.count = watch, array, 0

    def take(self) -> bytes:
        self.count += 1
        return xxh3_128_digest(self.array)

    def digest(self) -> bytes:
        return self.watch.digest(self.array.ctypes.data, self.array.nbytes, self.take)

    def right(self) -> bool:
        return self.digest() == xxh3_128_digest(self.array)


def through_a_pipe(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\x07" * 100)
    os.readv(reader, [memoryview(array)[5 << 20 : (5 << 20) + 100]])
    os.close(reader), os.close(writer)


def in_torch(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    torch.from_numpy(array)[-1] = 9


def everywhere(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    array += 1


def first(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    array[0] ^= 1


@pytest.mark.parametrize("write", [through_a_pipe, in_torch, everywhere, first])
def test_a_write_is_seen(watch: Untouched, write: Callable[..., None]) -> None:
    taken = Taken(watch, np.ones(SIZE, np.uint8))
    for _ in range(3):
        assert taken.right()
    write(taken.array)
    for _ in range(3):
        assert taken.right()
    write(taken.array)
    assert taken.right()


def test_what_nobody_wrote_is_read_once_where_the_system_can_tell(watch: Untouched) -> None:
    taken = Taken(watch, np.ones(SIZE, np.uint8))
    for _ in range(5):
        taken.digest()
    assert taken.count == (1 if watch._open() else 5)


def test_memory_at_rest_is_read_no_more_though_it_was_written_once(watch: Untouched) -> None:
    taken = Taken(watch, np.ones(SIZE, np.uint8))
    taken.digest()
    taken.array[:] = 2
    for _ in range(6):
        assert taken.right()
    assert taken.count == (4 if watch._open() else 7)
    taken.array[:] = 3
    assert taken.right() and taken.right()


def test_neighbours_may_write_on_its_first_and_last_page(watch: Untouched) -> None:
    room = np.ones(SIZE + 2 * mmap.PAGESIZE, np.uint8)
    start = -room.ctypes.data % mmap.PAGESIZE + 100
    taken = Taken(watch, room[start : start + SIZE])
    taken.digest()
    room[start - 1] = room[start + SIZE] = 7
    assert taken.right() and taken.count == (1 if watch._open() else 2)
    taken.array[-1] = 8  # on the page that it shares
    assert taken.right() and taken.right()


def test_other_memory_at_the_same_address(watch: Untouched) -> None:
    for value in range(6):
        taken = Taken(watch, np.full(SIZE, value, np.uint8))  # freed and mapped anew, mostly where it was
        assert taken.right() and taken.right()
        del taken


def test_memory_that_others_may_write_is_read_each_time(watch: Untouched) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(SIZE))
        file.flush()
        for access in (mmap.ACCESS_WRITE, mmap.ACCESS_COPY):
            shown = np.frombuffer(mmap.mmap(file.fileno(), SIZE, access=access), np.uint8)
            taken = Taken(watch, shown)
            assert taken.right()
            os.pwrite(file.fileno(), bytes([access]), 3 << 20)
            assert taken.right() and taken.count == 2


def test_a_forked_child_looks_at_its_own_memory(watch: Untouched) -> None:
    taken = Taken(watch, np.ones(SIZE, np.uint8))
    taken.digest()
    child = os.fork()
    if child == 0:
        taken.array[1 << 20] = 5
        os._exit(0 if taken.right() and taken.right() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert taken.right()


def lent(value: int) -> tuple[mmap.mmap, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """A file without a name, mapped copy-on-write."""
    file = os.memfd_create("nbpar")
    os.pwrite(file, bytes([value]) * SIZE, 0)
    mapped = mmap.mmap(file, SIZE, access=mmap.ACCESS_COPY)
    os.close(file)
    return mapped, np.frombuffer(mapped, np.uint8)


@pytest.mark.parametrize("write", [through_a_pipe, in_torch, everywhere, first])
def test_memory_that_came_with_its_digest(watch: Untouched, write: Callable[..., None]) -> None:
    file, array = lent(1)
    taken = Taken(watch, array)
    watch.remember(file, array.ctypes.data, SIZE, xxh3_128_digest(array))
    assert taken.right() and int(array.sum()) == SIZE and taken.right()
    assert taken.count == (0 if watch._open() else 2)
    write(array)
    for _ in range(5):
        assert taken.right()
    assert taken.count == (3 if watch._open() else 7)
    write(array)
    assert taken.right() and taken.right()


def test_other_memory_where_a_file_was_mapped(watch: Untouched) -> None:
    for value in range(6):
        file, array = lent(value)
        watch.remember(file, array.ctypes.data, SIZE, xxh3_128_digest(array))
        assert Taken(watch, array).right()
        del file, array
        assert Taken(watch, np.zeros(SIZE, np.uint8)).right()  # mapped mostly where the file was; not there before it is read


def test_a_system_that_cannot_tell(watch: Untouched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbpar.values.untouched.SYSCALL", {})
    taken = Taken(watch, np.ones(SIZE, np.uint8))
    assert taken.right() and taken.right() and taken.count == 2


def test_fingerprints_of_large_memory_follow_what_it_holds() -> None:
    array = np.zeros(SIZE, np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(30):
        if rng.random() < 0.5:
            array[rng.integers(SIZE)] += 1
        assert memory.fingerprint(array.ctypes.data, SIZE) == xxh3_128_digest(array)
