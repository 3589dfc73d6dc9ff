"""What an owner computes in one step, as the other ranks see it: results on meta, and one graph node for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from nbpar.errors import Unsupported
from nbpar.parallel.inner import Inner

from .channel import channel
from .home import give
from .operands import own, tensors

_PASSES_BY = "_nbpar_passes_by"


class Result(NamedTuple):
    """What the owner tells of one result."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, value: Tensor) -> Result:
        return cls(value.shape, value.stride(), value.dtype, value.requires_grad)

    def make(self, rank: int, inputs: Sequence[tuple[Tensor, Input | None]]) -> Tensor:
        """The result on a rank that does not hold it, with edges to `inputs`, each with what its gradient is."""
        if self.requires_grad:
            made: Tensor = Step.apply(self, rank, [known for _, known in inputs], *[value for value, _ in inputs])
            return made
        return give(self.empty(), rank)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _Pass:
    """The backward pass that runs: the leaves that have their gradient on meta already, or None if nobody may leave one out."""

    given: set[int] | None = None


@contextmanager
def accumulating() -> Iterator[None]:
    """A backward pass that adds to `.grad` of every leaf that it reaches."""
    before, _Pass.given = _Pass.given, set()
    try:
        yield
    finally:
        _Pass.given = before


def passes_by(value: Tensor) -> None:
    """Say that the node which made this value knows its gradient: where it is remote, none needs to come."""
    setattr(value, _PASSES_BY, True)


class Step(Inner):
    """A remote result. Its edges are exactly the owner's, so that gradients travel in the same order on both sides."""

    @staticmethod
    def forward(ctx: Any, result: Result, rank: int, known: list[Input | None], *inputs: Tensor) -> Tensor:
        ctx.rank, ctx.inputs = rank, known
        return give(result.empty(), rank)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise Unsupported(NO_SECOND_DERIVATIVE)
        return None, None, None, *[None if one is None else one.gradient(ctx.rank) for one in ctx.inputs]


class Input(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    leaf: Tensor | None

    @classmethod
    def of(cls, value: Tensor) -> Input:
        return cls(value.shape, value.dtype, value if value.is_leaf else None)

    def gradient(self, rank: int) -> Tensor | None:
        """None where a leaf has one already: a sum on meta says nothing new, and is dear."""
        if self.leaf is not None and _Pass.given is not None:
            if self.leaf.grad is not None or id(self.leaf) in _Pass.given:
                return None
            _Pass.given.add(id(self.leaf))
        return give(torch.empty(self.shape, dtype=self.dtype, device="meta"), rank)


def edge(value: Tensor) -> Input | None:
    """What is to be known of a value for its gradient; None if none comes to it from here."""
    return Input.of(value) if value.requires_grad and not hasattr(value, _PASSES_BY) else None


NO_SECOND_DERIVATIVE = (
    "a derivative of a derivative through a submodule that runs as one step: write create_graph=True "
    "(or torch.autograd.functional) in the cell itself, so that it is seen before the forward pass"
)


def tell_size(function: Callable[..., Any], args: Any, kwargs: Any, rank: int) -> Any:
    """Run a function whose results' sizes depend on values: the owner tells them."""
    link = channel()
    link.edge("size", rank, getattr(function, "__name__", ""))
    said: Any = None
    if link.rank == rank:
        try:
            out = function(*args, **kwargs)
            leaves, tree = tree_flatten(out)
            said = tree, [Result.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        except Exception as error:
            said = error
    said = link.tell(said, rank)
    if isinstance(said, Exception):
        raise said
    tree, leaves = said
    if link.rank != rank:
        inputs = [(value, edge(value)) for value in tensors((args, kwargs)) if value.requires_grad]
        made = [leaf.make(rank, inputs) if isinstance(leaf, Result) else leaf for leaf in leaves]
        out = tree_unflatten(made, tree)
    return own(out, rank)
