"""How the outputs of a call's pieces make those of the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .trial import Whole

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
WEIGHT = -1  # a layout: the mean of the pieces' numbers, weighted by rows; else the dimension along which they are joined


def layout_of(whole: Any, parts: list[Any], shares: list[float]) -> list[int]:
    """How the parts make the whole, output by output. Raises Whole where they do not."""
    leaves, tree = tree_flatten(whole)
    flat = [tree_flatten(part) for part in parts]
    if any(other != tree for _, other in flat):
        raise Whole("its pieces give another kind of result")
    found = []
    for leaf, *pieces in zip(leaves, *(part for part, _ in flat), strict=True):
        found.append(_way(leaf, pieces, shares))
    return found


def _way(leaf: Any, pieces: list[Any], shares: list[float]) -> int:
    if not isinstance(leaf, Tensor):
        if any(piece != leaf for piece in pieces):
            raise Whole("a number that it gives depends on the batch")
        return 0
    ways = [WEIGHT] if not leaf.dim() else [d for d in range(leaf.dim()) if _fits(leaf, pieces, d)]
    for way in ways:
        if _close(leaf, joined(pieces, way, shares)):
            return way
    raise Whole("its pieces do not give what the whole batch gives")


def _fits(leaf: Tensor, pieces: list[Tensor], dim: int) -> bool:
    sizes = [list(piece.shape) for piece in pieces]
    if any(len(size) != leaf.dim() for size in sizes):
        return False
    total = sum(size.pop(dim) for size in sizes)
    rest = list(leaf.shape)
    return rest.pop(dim) == total and all(size == rest for size in sizes)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    tolerance = TOLERANCE.get(a.dtype, 1e-2)
    scale = a.abs().max() if a.numel() else a.new_zeros(())
    return bool(((a - b).abs() <= tolerance * (scale + 1e-30)).all())


def joined(pieces: list[Tensor], way: int, shares: list[float]) -> Tensor:
    """shares: of the rows, by piece."""
    if way == WEIGHT:
        return torch.stack([piece * share for piece, share in zip(pieces, shares, strict=True)]).sum()
    return torch.cat(pieces, way)


def join(results: list[Any], layout: list[int], shares: list[float]) -> Any:
    """The whole call's result."""
    flat = [tree_flatten(result) for result in results]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    outputs = [
        joined(list(column), way, shares) if isinstance(column[0], Tensor) else column[0]
        for column, way in zip(columns, layout, strict=True)
    ]
    return tree_unflatten(outputs, flat[0][1])
