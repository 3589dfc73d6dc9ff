"""Linear, convolution and embedding with weights that are split.

    column   this rank's rows of the weight give its columns of the output, which are gathered
    row      a Linear after a split one takes its columns as they are; the ranks' outputs are summed

That a Linear's output can stay split is found by letting it: if something other than elementwise operations and a Linear
needs it, it is gathered there, and at once from the next call on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nbpar.parallel.patch import patched
from nbpar.parallel.ways import as_one

from .functions import Gather, Part, Spread, SumUp, Wrap, as_torch
from .ranks import ranks
from .sharded import Sharded, Shards, layout

_linear, _embedding = F.linear, F.embedding
_GATHERS = "_nbpar_gathers"


@as_one("linear")
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    shards = layout(weight)
    if shards is None or weight.dim() != 2 or in_transform():
        return _linear(input, weight, bias)
    given = layout(input)
    fits = given is not None and given.dim == input.dim() - 1 and input.shape[-1] == weight.shape[1]
    if fits and weight.is_leaf:
        shards.turn(1)
    if shards.dim == 1:
        return _rows(input, weight, bias)
    output = _linear(_enter(input), Part.apply(weight, 0), None if bias is None else Part.apply(bias, 0))
    return _leave(output, weight, shards)


def _rows(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Each rank adds the bias of its own columns, so that the sum has it once."""
    output = _linear(Part.apply(input, -1), Part.apply(weight, 1))
    add_up = as_torch(SumUp, output, bias is not None)
    if bias is not None:
        count = bias.shape[0]
        begin, end = ranks().bounds(count)
        output = output + F.pad(Part.apply(bias, 0).to(output.dtype), (begin, count - end))
    return add_up.apply(output)


def _enter(input: Tensor) -> Tensor:
    if isinstance(input, Sharded) or input.requires_grad:
        return Spread.apply(input)
    return input


def _leave(output: Tensor, weight: Tensor, shards: Shards) -> Tensor:
    count = weight.shape[0]
    if getattr(weight, _GATHERS, False) or not weight.is_leaf:
        return as_torch(Gather, output).apply(output, -1, count)
    whole: Sharded = as_torch(Wrap, output).apply(output, -1, count, True)
    whole._shards.gathered = lambda: setattr(weight, _GATHERS, True)
    return whole


def _convolution(original: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    @as_one(original.__name__)
    def convolution(  # noqa: PLR0917
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        shards = layout(weight)
        if shards is None or shards.dim or groups != 1 or in_transform():
            return original(input, weight, bias, stride, padding, dilation, groups)
        mine = None if bias is None else Part.apply(bias, 0)
        output = original(_enter(input), Part.apply(weight, 0), mine, stride, padding, dilation, groups)
        return as_torch(Gather, output).apply(output, output.dim() - dims - 1, weight.shape[0])

    return convolution


@as_one("embedding")
def embedding(  # noqa: PLR0917
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    shards = layout(weight)
    if shards is None or shards.dim != 1 or max_norm is not None or sparse or in_transform():
        return _embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    output = _embedding(input, Part.apply(weight, 1), padding_idx, None, norm_type, scale_grad_by_freq)
    return as_torch(Gather, output).apply(output, output.dim() - 1, weight.shape[1])


conv1d, conv2d, conv3d = _convolution(torch.conv1d, 1), _convolution(torch.conv2d, 2), _convolution(torch.conv3d, 3)
IN_PARALLEL: dict[Any, Callable[..., Tensor]] = {
    F.linear: linear, torch.conv1d: conv1d, torch.conv2d: conv2d, torch.conv3d: conv3d, F.embedding: embedding,
}  # fmt: skip


def in_transform() -> bool:
    """Inside torch.func and torch.vmap, layers are whole."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def in_parallel() -> Iterator[None]:
    """torch's own modules and functions find these layers too where tensors do not call them by themselves."""
    with ExitStack() as stack:
        for name in ("linear", "conv1d", "conv2d", "conv3d", "embedding"):
            stack.enter_context(patched(F, name, lambda original: IN_PARALLEL[original]))
        yield
