from __future__ import annotations

from dataclasses import replace

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


def blocked(operation: str, sequence: int, peer: int = -1, begun: dict[object, int] | None = None) -> Wait:
    return Wait("0", sequence, operation, (2, 2), 7, 1.0, blocks=True, peer=peer, members=(0, 1), begun=begun or {})


DEADLOCKS = {
    "both receive": (blocked("recv", 2, 1, {("send", "0", 1): 1}), blocked("recv", 1, 0, {("send", "0", 0): 2})),
    "one is in a collective": (blocked("broadcast", 6, begun={"0": 7}), blocked("recv", 3, 0, {"0": 6})),
    "both in collectives": (blocked("broadcast", 6, begun={"0": 7}), blocked("barrier", 5, begun={"0": 6})),
}


def test_nobody_waits_long_where_it_is_plain_that_nobody_will_come() -> None:
    first, second = DEADLOCKS["both receive"]
    waits = {0: first, 1: second}
    assert "rank 1 waits in recv #1" in (explain(waits, (), waits) or "")
    assert explain(waits, (), {}) is None, "seen once, a rank may just be moving on"
    assert explain(waits, (), {**waits, 1: blocked("recv", 0, 0)}) is None, "it has moved on"
    assert explain({0: first, 1: None}, (), waits) is None


def test_who_has_come_is_on_the_way() -> None:
    first, second = DEADLOCKS["one is in a collective"]
    assert explain({0: first, 1: second}, (), {0: first, 1: second})
    sent = replace(first, begun={**first.begun, ("send", "0", 1): 4})
    assert explain({0: sent, 1: second}, (), {0: sent, 1: second}) is None, "the message is on its way"
    here = replace(second, begun={"0": 7})
    assert explain({0: first, 1: here}, (), {0: first, 1: here}) is None, "it has begun the same collective, and will end it"
    busy = replace(second, blocks=False)
    assert explain({0: first, 1: busy}, (), {0: first, 1: busy}) is None, "it computes while a call of its is under way"
    one, other = DEADLOCKS["both in collectives"]
    assert explain({0: one, 1: other}, (), {0: one, 1: other}) is None, "rank 1 waits for nobody: rank 0 has come to its call"
