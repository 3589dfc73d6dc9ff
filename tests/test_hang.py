from __future__ import annotations

import pytest

from nbpar.hang import STUCK, Wait, explain


def wait(operation: str = "all_reduce", sequence: int = 3, shape: tuple[int, ...] = (2, 2), seconds: float = STUCK) -> Wait:
    return Wait("0", sequence, operation, shape, 7, seconds)


@pytest.mark.parametrize(
    ("waits", "left"),
    [
        ({0: wait(), 1: None}, ()),  # rank 1 computes
        ({0: wait(), 1: wait(sequence=4, seconds=1)}, ()),  # it may have moved on just now
        ({0: wait(), 1: wait()}, ()),  # the same, slow
        ({}, (0, 1)),
    ],
)
def test_slow_is_not_stuck(waits: dict[int, Wait | None], left: tuple[int, ...]) -> None:
    assert explain(waits, left) is None


@pytest.mark.parametrize(
    ("waits", "left", "says"),
    [
        ({0: wait(), 1: wait("broadcast")}, (), "rank 1 waits in broadcast #3 of 2×2, line 7, since 10 s"),
        ({0: wait(), 1: wait(shape=(3,))}, (), "all_reduce #3 of 3,"),
        ({0: wait(), 1: wait(sequence=4)}, (), "all_reduce #4"),
        ({0: wait("recv"), 1: wait("recv")}, (), "recv"),
        ({0: wait()}, (1, 2), "rank 1,2 has left the cell"),
    ],
)
def test_stuck_is_explained_by_rank(waits: dict[int, Wait | None], left: tuple[int, ...], says: str) -> None:
    assert says in (explain(waits, left) or "")
