"""How an output is made of the ranks' rows: found by evidence, never by its shape alone.

A layout (dim, outer) says that dimension `dim` of the whole output is (outer, rows, inner) flattened. So (0, 1) covers rows
first, also flattened with what follows; (0, T) time before rows, as in (T·B, V) logits; (1, 1) recurrent states (L, B, H).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nbpar.parallel.data.ranks import Ranks


@dataclass(frozen=True)
class Share:
    """Rows over the ranks, and which of them are this rank's."""

    sizes: tuple[int, ...]
    rank: int

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    @property
    def count(self) -> int:
        return self.sizes[self.rank]

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    @property
    def weight(self) -> float:
        return self.count / self.rows


@dataclass(frozen=True)
class Layout:
    dim: int
    outer: int = 1

    def cut(self, whole: Tensor, share: Share) -> Tensor:
        """This rank's rows, as a tensor of its own."""
        dim, shape = self.dim, whole.shape
        inner = shape[dim] // (self.outer * share.rows)
        if self.outer == 1:
            return whole.narrow(dim, share.start * inner, share.count * inner).clone()
        parts = whole.reshape(*shape[:dim], self.outer, share.rows, inner, *shape[dim + 1 :])
        parts = parts.narrow(dim + 1, share.start, share.count)
        return parts.reshape(*shape[:dim], self.outer * share.count * inner, *shape[dim + 1 :]).clone()

    def gather(self, local: Tensor, share: Share, ranks: Ranks) -> Tensor:
        """The whole tensor, of which `local` is this rank's rows. Not a view: programs change it in place."""
        dim, shape = self.dim, local.shape
        inner = shape[dim] // (self.outer * share.count)
        if dim == 0 and self.outer == 1:
            rows = local.reshape(share.count, inner, *shape[1:])
        else:
            parts = local.reshape(*shape[:dim], self.outer, share.count, inner, *shape[dim + 1 :])
            rows = parts.movedim(dim + 1, 0)
        whole = ranks.gather(rows, share.sizes)
        if dim == 0 and self.outer == 1:
            return torch.ops.aten._unsafe_view(whole, (share.rows * inner, *shape[1:]))
        whole = whole.movedim(0, dim + 1).reshape(self.whole_shape(local, share))
        return whole.clone(memory_format=torch.contiguous_format) if whole._is_view() else whole

    def whole_shape(self, local: Tensor, share: Share) -> tuple[int, ...]:
        shape = list(local.shape)
        shape[self.dim] = shape[self.dim] // share.count * share.rows
        return tuple(shape)

    def fits(self, local: Tensor, share: Share) -> bool:
        return local.dim() > self.dim and local.shape[self.dim] % (self.outer * share.count) == 0


# A value that has no rows: equal on all ranks; the row-weighted mean, or the sum, of the ranks' values.
Plain = Literal["same", "mean", "sum"]
How = Layout | Plain


def layouts(local: Tensor, whole: Tensor, share: Share) -> Iterator[Layout]:
    """Every layout that the shapes allow, the likeliest first."""
    if local.dim() != whole.dim():
        return
    for dim in range(local.dim()):
        others = all(a == b for at, (a, b) in enumerate(zip(local.shape, whole.shape, strict=True)) if at != dim)
        times, rest = divmod(whole.shape[dim], share.rows)
        if not others or rest or times == 0 or local.shape[dim] != times * share.count:
            continue
        for outer in range(1, times + 1):
            if times % outer == 0:
                yield Layout(dim, outer)


def find(local: Tensor, whole: Tensor, share: Share, bound: float | None = None) -> Layout | Literal["plain"] | None:
    """How `local` is part of `whole`; "plain" if it has no rows; None if it is not. bound: as in `same`."""
    for layout in layouts(local, whole, share):
        if same(local, layout.cut(whole, share), bound):
            return layout
    return "plain" if local.shape == whole.shape else None


def plain(pairs: Sequence[tuple[Tensor, Tensor]], share: Share, ranks: Ranks, bounds: Sequence[float | None]) -> list[Plain | None]:
    """What kinds of numbers these are: each rank's value and the whole one. None: of no kind. Collective."""
    if not pairs:
        return []
    every = ranks.objects([same(local, whole, bound) for (local, whole), bound in zip(pairs, bounds, strict=True)])
    kinds: list[Plain | None] = ["same" if all(alike) else None for alike in zip(*every, strict=True)]
    for at, ((local, whole), bound) in enumerate(zip(pairs, bounds, strict=True)):
        if kinds[at] is None and whole.is_floating_point():
            kinds[at] = mean_or_sum(local, whole, share, ranks, bound)
    return kinds


def mean_or_sum(local: Tensor, whole: Tensor, share: Share, ranks: Ranks, bound: float | None) -> Plain | None:
    bound = tolerance(whole.dtype) if bound is None else bound
    values = local.detach().double()
    mean = ranks.all_reduce((values * share.weight).contiguous(), "agreement")
    if same(mean, whole.double(), bound):
        return "mean"
    total = ranks.all_reduce(values.clone().contiguous(), "agreement")
    return "sum" if same(total, whole.double(), bound) else None


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same may lie apart, as a part of the largest value."""
    return TOLERANCE.get(torch.empty((), dtype=dtype).real.dtype if dtype.is_complex else dtype, 1e-4)


def same(a: Tensor, b: Tensor, bound: float | None = None, scale: float = 0.0) -> bool:
    """Equal, up to rounding. bound: tolerance, if not that of the type. scale: what is small, if larger than the largest value."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout != torch.strided or b.layout != torch.strided:
        return a.layout == b.layout and same(a.to_dense(), b.to_dense(), bound, scale)
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    if a.numel() == 0:
        return True
    a, b = a.detach(), b.detach()
    bound = tolerance(a.dtype) if bound is None else bound
    scale = max(scale, largest(b))
    return torch.allclose(a, b, rtol=bound, atol=bound * scale + 1e-300, equal_nan=True)


def largest(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    values = dense(tensor)
    most = float(values.abs().max()) if values.numel() else 0.0
    if math.isfinite(most):
        return most
    finite = values[torch.isfinite(values)].abs()
    return float(finite.max()) if finite.numel() else 0.0


def dense(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()


def reduced() -> bool:
    """Whether autocast is on."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def loose() -> float | None:
    """Under autocast, results are only as close as its type."""
    return 5e-2 if reduced() else None
