"""Contiguous parts of nearly equal cost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nbpar.plan.partition import partition

COSTS = st.lists(st.integers(0, 50), min_size=1, max_size=9)


def largest(costs: list[int], parts: list[int]) -> int:
    return max(sum(cost for cost, part in zip(costs, parts, strict=True) if part == chosen) for chosen in set(parts))


def least(costs: list[int], parts: int) -> int:
    """By trying every way."""
    if parts == 1:
        return sum(costs)
    return min(max(sum(costs[:cut]), least(costs[cut:], parts - 1)) for cut in range(1, len(costs) - parts + 2))


@given(COSTS, st.integers(1, 4))
def test_the_largest_part_is_the_least_possible_and_parts_are_contiguous(costs: list[int], parts: int) -> None:
    found = partition(costs, parts)
    used = min(parts, len(costs))
    assert found[0] == 0 and found[-1] == used - 1
    assert all(after - before in (0, 1) for before, after in pairwise(found))
    assert largest(costs, found) == least(costs, used)


@given(COSTS, st.integers(1, 4), st.data())
def test_loose_joints_are_cut_within_the_slack(costs: list[int], parts: int, data: st.DataObject) -> None:
    joints = data.draw(st.lists(st.integers(0, 3), min_size=len(costs), max_size=len(costs)))
    found = partition(costs, parts, joints, slack=0.25)
    used = min(parts, len(costs))
    assert found[0] == 0 and found[-1] == used - 1
    assert largest(costs, found) <= 1.25 * least(costs, used) + 1e-9


def test_blocks_are_not_cut_where_a_border_between_blocks_is_as_good() -> None:
    costs = [1, 1, 1, 1, 1, 1, 1, 1]
    inside_a_block = [0, 2, 2, 1, 2, 2, 2, 1]
    assert partition(costs, 2, inside_a_block, slack=0.3) == [0, 0, 0, 1, 1, 1, 1, 1]
