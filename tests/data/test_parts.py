"""Parts that need no ranks: layouts, names of batches, results taken apart."""

from __future__ import annotations

import ast
import dataclasses
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbpar.parallel.data.batch import ROWS, Binder
from nbpar.parallel.data.layouts import Layout, Share, find, layouts
from nbpar.parallel.data.norm import of_rows
from nbpar.parallel.data.structure import flatten, unflatten

SIZES = st.sampled_from([(3, 2), (2, 2), (2, 2, 1), (4, 3, 3)])


class Fake:
    """Ranks whose parts are all here."""

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self.parts = parts

    def gather(self, rows: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        return torch.cat(self.parts)


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    st.integers(0, 2),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 4]),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_cut_is_found_and_gathered_again(sizes: tuple[int, ...], dim: int, outer: int, inner: int, others: list[int]) -> None:
    shape = [*others[:dim], outer * sum(sizes) * inner, *others[dim:]]
    whole = torch.randn(shape)
    shares = [Share(sizes, rank) for rank in range(len(sizes))]
    layout = Layout(dim, outer)
    parts = [layout.cut(whole, share) for share in shares]
    for part, share in zip(parts, shares, strict=True):
        assert layout.fits(part, share) and layout.whole_shape(part, share) == whole.shape
        assert layout in list(layouts(part, whole, share))
        found = find(part, whole, share)
        assert isinstance(found, Layout) and torch.equal(found.cut(whole, share), part)
    rows = []
    for part, share in zip(parts, shares, strict=True):
        split = part.reshape(*part.shape[:dim], outer, share.count, inner, *part.shape[dim + 1 :])
        rows.append(split.movedim(dim + 1, 0).reshape(share.count, -1))
    first = parts[0].reshape(*parts[0].shape[:dim], outer, sizes[0], inner, *parts[0].shape[dim + 1 :]).movedim(dim + 1, 0)
    gathered = layout.gather(parts[0], shares[0], Fake([row.reshape(-1, *first.shape[1:]) for row in rows]))  # type: ignore[arg-type]
    assert torch.equal(gathered, whole) and not gathered._is_view()


def bound(text: str, *names: str, **given: Any) -> dict[str, Any]:
    namespace: dict[str, Any] = {ROWS: lambda value: f"rows of {value}", **given}
    exec(compile(Binder(names).visit(ast.parse(text)), "cell", "exec"), namespace)
    return namespace


def test_batches_are_cut_wherever_they_are_bound() -> None:
    assert bound("x = 'X'", "x")["x"] == "rows of X"
    assert bound("x, (y, z) = 'X', ('Y', 'Z')", "x", "z")["z"] == "rows of Z"
    assert bound("for i, x in [(0, 'X')]:\n    seen = x", "x")["seen"] == "rows of X"
    assert bound("def f():\n    for x in 'X':\n        return x\nseen = f()", "x")["seen"] == "rows of X"
    assert bound("if (x := 'X'):\n    pass", "x")["x"] == "rows of X"
    assert bound("try:\n    x: str = 'X'\nfinally:\n    y = 'Y'", "x", "y")["y"] == "rows of Y"


def test_a_batch_made_from_a_batch_is_not_cut_again() -> None:
    assert bound("x = 'X'\nx = x + '!'", "x")["x"] == "rows of X!"
    assert bound("x, y = 'X', 'Y'\nfor y in [x]:\n    pass", "x", "y")["y"] == "rows of X"


@dataclasses.dataclass
class Output:
    loss: Any
    more: Any = None


def test_results_are_taken_apart_and_put_together() -> None:
    Pair = namedtuple("Pair", "a b")
    for value in (1, None, (1, [2, {"a": 3}]), Output(1, Output([2, 3])), [Output(1), 2], {"x": Output((1, 2), "s")}, Pair(1, 2)):
        leaves, structure = flatten(value)
        assert unflatten(leaves, structure) == value
        assert flatten(value)[1] == structure
    assert flatten(Output(1, 2))[0] == [1, 2]


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7), (32, 8, 16, 16), (4, 2, 3, 4, 5)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_of_channels(shape: tuple[int, ...], offset: float, dtype: torch.dtype) -> None:
    rows = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) + offset
    mean, var = of_rows(rows)
    var_exact, mean_exact = torch.var_mean(rows.double(), [0, *range(2, len(shape))], correction=0)
    bound = torch.finfo(dtype).eps * (1 + offset) * (4 if dtype == torch.float32 else 200)  # torch's own sums are plain ones
    assert ((mean - mean_exact).abs() <= bound).all()
    assert ((var - var_exact).abs() <= 5 * bound * var_exact).all()
