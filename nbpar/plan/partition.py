"""Divide a chain of layers into contiguous parts of nearly equal cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise


def partition(costs: Sequence[float], parts: int, joints: Sequence[int] | None = None, slack: float = 0.05) -> list[int]:
    """The part of each layer, in non-decreasing order: the largest part's cost is within `slack` of the least possible.

    costs: one for each layer, in the order of the chain; any unit. parts: how many; each gets at least one layer while
    there are layers. joints: how tightly each layer holds to the one before it (say, how deep their common block is
    nested); within the slack, the loosest joints are cut.
    """
    count = len(costs)
    parts = min(parts, count)
    if parts < 2:
        return [0] * count
    sums = [0.0, *accumulate(float(cost) for cost in costs)]
    cuts = _least_cuts(sums, parts)
    if joints is not None:
        cuts = _loosest(sums, cuts, joints, (1 + slack) * _largest(sums, cuts))
    ends = cuts[1:]
    return [bisect_left(ends, layer + 1) for layer in range(count)]


def _largest(sums: Sequence[float], cuts: Sequence[int]) -> float:
    return max(sums[end] - sums[start] for start, end in pairwise(cuts))


def _least_cuts(sums: Sequence[float], parts: int) -> list[int]:
    """Borders 0 = c0 < c1 < … < c_parts = n that make the largest part least (dynamic programming, n² · parts)."""
    count = len(sums) - 1
    best = [[float("inf")] * (count + 1) for _ in range(parts + 1)]
    start = [[0] * (count + 1) for _ in range(parts + 1)]
    best[0][0] = 0.0
    for part in range(1, parts + 1):
        for end in range(part, count - (parts - part) + 1):
            for cut in range(part - 1, end):
                cost = max(best[part - 1][cut], sums[end] - sums[cut])
                if cost < best[part][end]:
                    best[part][end], start[part][end] = cost, cut
    cuts = [count]
    for part in range(parts, 0, -1):
        cuts.append(start[part][cuts[-1]])
    return cuts[::-1]


def _loosest(sums: Sequence[float], cuts: list[int], joints: Sequence[int], limit: float) -> list[int]:
    """Move each border to the loosest joint that keeps both of its parts within the limit."""
    cuts = list(cuts)
    for i in range(1, len(cuts) - 1):
        before, after = cuts[i - 1], cuts[i + 1]
        allowed = [
            cut for cut in range(before + 1, after) if sums[cut] - sums[before] <= limit and sums[after] - sums[cut] <= limit
        ]
        cuts[i] = min(allowed, key=lambda cut: (joints[cut], abs(cut - cuts[i])))
    return cuts
