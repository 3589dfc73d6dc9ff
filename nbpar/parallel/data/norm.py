"""BatchNorm inside a split call uses the whole batch: one gather of statistics forward, one all-reduce backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data import context
from nbpar.parallel.data.border import SumRanks
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.ranks import to_list
from nbpar.parallel.data.rowwise import one_step
from nbpar.parallel.inner import Inner

LONG = 4096  # values that float32 may sum up one after another


def exact(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.batch_norm`, the operator behind `F.batch_norm`, with the statistics of all ranks' rows."""

    def batch_norm(  # noqa: PLR0917
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn: bool,
    ) -> Tensor:
        if input.is_meta and training and context.running is not None and input.numel() == input.shape[1]:
            known = input.new_zeros(input.shape[1])  # of one value torch's kernel for shapes would take the variance, and fail
            return original(input, weight, bias, known, known, False, momentum, eps, cudnn)
        call = None if input.is_meta else context.running
        if call is not None and training and call.local_batchnorm and running_mean is not None and running_var is not None:
            call.statistics[id(running_mean)] = running_mean, running_var
        if call is None or not training or call.local_batchnorm:
            return original(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)
        with torch.no_grad():
            mean, var, count = statistics(input, call)
            if running_mean is not None:
                running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
            if running_var is not None:
                running_var.mul_(1 - momentum).add_(var.to(running_var.dtype), alpha=momentum * count / (count - 1))
        constant = functools.partial(original, training=False, momentum=0.0, eps=eps, cudnn_enabled=cudnn)
        return Normalise.apply(input, weight, bias, mean, var, constant, count, eps, call)

    return lambda *args: one_step("batch_norm", batch_norm, args, args[5:8])


def of_all_ranks(original: Callable[..., None]) -> Callable[..., None]:
    """`F.batch_norm` asks whether there is more than one value to take statistics of: in a split call, with the other ranks' rows.

    A call is split if it has a row for each of two ranks or more.
    """

    def verify(size: Any) -> None:
        call = context.running
        if context.record is None and (call is None or call.local_batchnorm):
            original(size)

    return verify


def even_out(call: Call) -> None:
    """After BatchNorm over each rank's own rows: running statistics become the row-weighted mean of the ranks'."""
    tensors = [tensor for pair in call.statistics.values() for tensor in pair]
    if not tensors:
        return
    with torch.no_grad(), torch._C.DisableTorchFunction():
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors]) * call.share.weight
        call.ranks.all_reduce(flat, "inside")
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.data.copy_(part.view(tensor.shape))  # autograd has saved the tensor, whose values it does not use
    call.statistics.clear()


def statistics(input: Tensor, call: Call) -> tuple[Tensor, Tensor, float]:
    """Mean, biased variance and number of values of each channel over all ranks; combined as Chan et al. (1979) do."""
    precise = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    count = input.numel() // input.shape[1]
    mean, var = of_rows(precise) if count else (precise.new_zeros(input.shape[1]),) * 2
    every = call.gather(torch.cat([mean.new_tensor([count]), mean, var]))
    counts, means, variances = every[:, :1], *every[:, 1:].chunk(2, dim=1)
    total: float = to_list(counts.sum())  # type: ignore[assignment]
    mean_all = (counts * means).sum(0) / total
    var_all = (counts * (variances + (means - mean_all) ** 2)).sum(0) / total
    return mean_all.to(precise.dtype), var_all.to(precise.dtype), total


def of_rows(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of this rank's rows."""
    if input.dim() > 2 and input.is_contiguous():
        plane = input.flatten(2)
        runs = plane if plane.shape[2] <= LONG else input
        if runs.shape[-1] <= LONG:
            mean, var, certain = of_squares(runs)
            if certain:
                return mean, var
    mean, var = torch.batch_norm_update_stats(input, None, None, 0.0)  # three times as fast as var_mean
    return mean, var


def of_squares(runs: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Mean and variance from sums of values and of squares, in a third of the time that squares of differences take.

    runs: (n, C, …, few), so that sums along the last dimension lose little; all others are in float64.
    The difference of squares loses as many digits as it is smaller than they are: certain says that it is not by much.
    """
    dims = [0, *range(2, runs.dim() - 1)]
    mean = runs.mean(-1).double().mean(dims)
    square = torch.linalg.vector_norm(runs, dim=-1).double().square_().mean(dims).div_(runs.shape[-1])
    var = square - mean * mean
    return mean, var, all(to_list(square <= 4 * var))


class Normalise(Inner):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None,
        mean: Tensor, var: Tensor, constant: Callable[..., Tensor], count: float, eps: float, call: Call,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(input, weight, bias, mean, var)
        ctx.count, ctx.eps, ctx.call = count, eps, call
        return constant(input, weight, bias, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight, bias, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = differentiable(ctx, grad, input, weight, bias)
        else:
            grads = fused(ctx, grad, input, weight, bias, mean, var)
        return *grads, None, None, None, None, None, None


def fused(  # noqa: PLR0917
    ctx: Any, grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
) -> tuple[Tensor | None, ...]:
    """Two reductions, summed over the ranks, then grad · scale − input · slope − constant, channel by channel, in two passes.

    torch's own kernel for the input's gradient takes three times as long, and knows this rank's sums only.
    """
    shape = [1, -1] + [1] * (input.dim() - 2)
    scale_type = mean.dtype if weight is None else weight.dtype
    _, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
        grad.contiguous() if input.is_contiguous() else grad, input, weight,
        mean.to(scale_type), var.to(scale_type), None, None, False, ctx.eps, [False, True, True],
    )  # fmt: skip
    sums = ctx.call.ranks.all_reduce(torch.cat([to_weight, to_bias]).to(mean.dtype), "inside") / ctx.count
    along, offset = sums.chunk(2)
    inverse = (var + ctx.eps).rsqrt()
    scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
    slope = scale * inverse * along
    constant = scale * offset - slope * mean
    neutral = torch.zeros_like(mean), torch.ones_like(var)
    to_input = torch.batch_norm(input, -slope, -constant, *neutral, False, 0.0, 0.0, False)
    to_input = to_input.addcmul_(grad, scale.to(grad.dtype).view(shape))
    return to_input, None if weight is None else to_weight, None if bias is None else to_bias


def differentiable(ctx: Any, grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same, made of functions that can be differentiated again."""
    dims = [dim for dim in range(input.dim()) if dim != 1]
    shape = [1, -1] + [1] * (input.dim() - 2)
    mean = SumRanks.apply(input.sum(dims), ctx.call) / ctx.count
    centred = input - mean.view(shape)
    var = SumRanks.apply(centred.pow(2).sum(dims), ctx.call) / ctx.count
    output = centred * (var + ctx.eps).rsqrt().view(shape)
    if weight is not None:
        output = output * weight.view(shape)
    if bias is not None:
        output = output + bias.view(shape)
    inputs = [tensor for tensor in (input, weight, bias) if tensor is not None and tensor.requires_grad]
    grads = iter(torch.autograd.grad(output, inputs, grad, create_graph=True))
    return tuple(next(grads) if tensor is not None and tensor.requires_grad else None for tensor in (input, weight, bias))
