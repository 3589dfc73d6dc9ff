"""Which way a program goes is told by the functions that it calls, and by the dimensions along which they work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nbpar.parallel.ways import Functions

x = torch.randn(4, 4, 4)
OTHERWISE: dict[str, Callable[[Any], Tensor]] = {
    "mean": x.mean,
    "mean, by keyword": lambda d: torch.mean(x, dim=d),
    "several dimensions": lambda d: x.sum((d, 1)),
    "max": lambda d: x.max(d).values,
    "softmax": lambda d: F.softmax(x, dim=d),
    "normalise": lambda d: F.normalize(x, 2.0, d),
    "sort": lambda d: x.sort(d).values,
    "flip": x.flip,
    "roll": lambda d: x.roll(1, d),
    "cumsum, in place": lambda d: x.clone().cumsum_(d),
    "transpose": lambda d: x.transpose(d, 1),
    "permute": lambda d: x.permute(d, 1, 2 if d in (0, -3) else 0),
    "cat": lambda d: torch.cat([x, x], d),
    "chunk": lambda d: x.chunk(2, d)[0],
    "split": lambda d: x.split(1, d)[0],
    "index_select": lambda d: x.index_select(d, torch.tensor([0])),
    "select": lambda d: x.select(d, 0),
    "narrow": lambda d: x.narrow(d, 0, 1),
    "norm": lambda d: torch.linalg.vector_norm(x, dim=d),
    "fft": lambda d: torch.fft.fft(x, dim=d),
    "einsum": lambda d: torch.einsum("abc->bc" if d in (0, -3) else "abc->ab", x),
    "an index": lambda d: x[0] if d in (0, -3) else x[..., 0],
    "a slice": lambda d: x[:1] if d in (0, -3) else x[:, :, :1],
    "statistics": lambda d: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=d in (0, -3)),
}
SAME: dict[str, Callable[[int], Tensor]] = {
    "sizes": lambda n: torch.zeros(n, 4).view(n, 2, 2).flatten(1).unflatten(1, (2, 2)).expand(n, 2, 2),
    "numbers": lambda n: x * n + x.roll(n, 0),
    "which row": lambda n: x[n % 4] + x[:n].sum() + x.select(0, n % 4),
    "repeats": lambda n: torch.zeros(2).repeat(n).tile(n),
}


def way(run: Callable[[Any], Tensor], number: int) -> int:
    with Functions() as functions:
        run(number)
    return hash(tuple(functions.steps))


@pytest.mark.parametrize("name", OTHERWISE)
def test_another_dimension_is_another_way(name: str) -> None:
    run = OTHERWISE[name]
    assert way(run, 0) == way(run, 0)
    assert way(run, 0) != way(run, 2)
    assert way(run, -3) != way(run, -1)


@pytest.mark.parametrize("name", ["mean", "mean, by keyword", "softmax", "flip", "sort"])
def test_numbers_that_have_one_hash_are_told_apart(name: str) -> None:
    assert hash(-2) == hash(-1)
    assert way(OTHERWISE[name], -2) != way(OTHERWISE[name], -1)


@pytest.mark.parametrize("name", SAME)
def test_other_numbers_are_not(name: str) -> None:
    assert len({way(SAME[name], number) for number in range(1, 8)}) == 1
