"""Gradients of linear layers' weights are computed last, for several micro-batches together: no rank waits for them.

The backward pass of a stage in four pieces, B for a piece's inputs and W for its share of the weights' gradients:

    as autograd goes    B W B W B W B W      the stage before waits for a B and a W before it has anything to do
    here                B B B W B W W W      it waits for a B, and is busy when this one comes to its W

The split is that of "Zero Bubble Pipeline Parallelism" (Qi et al. 2023). It is made in the graph itself, on all ranks alike: some
pieces use a weight by way of one node, made before any of them. The engine, which runs the newest node first, comes to it last.
Those are the second half, of which the gradients come first; with the other half the stage before has been given enough to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nbpar.errors import Unsupported
from nbpar.parallel.inner import Inner

from .channel import channel
from .home import owner
from .layers import parts_of
from .remote import NO_SECOND_DERIVATIVE, Input, passes_by

Product = tuple[Tensor, int, Tensor, int]  # rows of an input and of the gradient of its output, each with its version
Products = dict[int, list[Product]]  # of a layer, by backward pass

_saving = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from torch 2.8 on


class Late:
    """What stands for the parameters of linear layers while a model is called in pieces."""

    def __init__(self) -> None:
        self.on = False  # whether what runs is one of the pieces that wait
        self._instead: dict[int, Tensor] = {}  # by the ids of parameters
        self._products: dict[int, Products] = {}  # by the ids of what stands for weights

    @contextmanager
    def pieces(self, model: nn.Module, count: int) -> Iterator[Callable[[int], None]]:
        """The calls inside are pieces of one call of this model. Gives what is to be told which comes next."""

        def begin(piece: int) -> None:
            self.on = 2 * piece >= count

        if _saving is not None and torch.is_grad_enabled():
            with torch._C.DisableTorchFunction():
                for layer in _alone(model):
                    self._add(layer)
        try:
            yield begin
        finally:
            self.on, self._instead, self._products = False, {}, {}

    def _add(self, layer: nn.Linear) -> None:
        values = _learning(layer)
        products: Products = {}
        made = _Last.apply(products, *values)
        self._instead.update((id(value), one) for value, one in zip(values, made, strict=True))
        self._products[id(made[0])] = products

    def instead(self, parameters: Iterable[Tensor]) -> dict[int, Tensor]:
        """What a step uses for these parameters, by their ids."""
        if not self.on:
            return {}
        return {id(value): self._instead[id(value)] for value in parameters if id(value) in self._instead}

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """original(module, *args, **kwargs): a call inside a step, on the rank that runs it."""
        if self.on and type(module) is nn.Linear and len(args) == 1 and not kwargs:
            products = self._products.get(id(module.weight))
            if products is not None and _is_plain(args[0], module.weight):
                return _Linear.apply(products, args[0], module.weight, module.bias)
        return original(module, *args, **kwargs)


def _alone(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that can wait and whose parameters no other module has. Not those of the first stage: no rank waits for
    its gradients, and weights' are computed soonest while what they are made of is in the cache."""
    parts = parts_of(model)
    held = [value for part in parts for value in part._parameters.values() if value is not None]
    users, first = Counter(map(id, held)), owner(held[0]) if held else None
    layers = [part for part in parts if type(part) is nn.Linear and _waits(part, first)]
    return [layer for layer in layers if all(users[id(value)] == 1 for value in _learning(layer))]


def _learning(layer: nn.Linear) -> list[Tensor]:
    return [value for value in (layer.weight, layer.bias) if value is not None and value.requires_grad]


def _waits(layer: nn.Linear, first: int | None) -> bool:
    """Told alike on all ranks."""
    if owner(layer.weight) == first:
        return False
    values, weight = list(layer.parameters()), layer.weight
    homes = {owner(value) for value in values}
    plain = weight.requires_grad and weight.is_floating_point() and weight.numel() > 0
    return plain and all(value.is_leaf for value in values) and len(homes) == 1 and None not in homes


def _is_plain(value: Any, weight: Tensor) -> bool:
    """Whether the layer does nothing but multiply, and nothing looks at how."""
    if type(value) is not Tensor or value.dtype != weight.dtype or not torch.is_grad_enabled():
        return False
    watched = _has_any_global_hook() or _saving is None or _saving(True) is not None
    return not watched and not torch.is_autocast_enabled(value.device.type) and torch._C._get_tracing_state() is None


class _Last(Inner):
    """Gives what stands for the parameters. It is older than all pieces, so its backward comes after theirs."""

    @staticmethod
    def forward(ctx: Any, products: Products, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.products, ctx.inputs, ctx.rank = products, [Input.of(value) for value in values], owner(values[0])
        ctx.set_materialize_grads(False)
        made = tuple(value.view_as(value) for value in values)
        for value in made:
            passes_by(value)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise Unsupported(NO_SECOND_DERIVATIVE)
        if ctx.rank != channel().rank:
            return None, *[one.gradient(ctx.rank) for one in ctx.inputs]
        late = _sums(ctx.products.pop(torch._C._current_graph_task_id(), ()), len(grads) > 1)
        return None, *[_added(*pair) for pair in zip(grads, late, strict=False)]


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _sums(products: Iterable[Product], with_bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a weight and of its bias."""
    weight: Tensor | None = None
    bias: Tensor | None = None
    for x, then, rows, since in products:
        if x._version != then or rows._version != since:
            raise RuntimeError("what a linear layer took or its result's gradient was changed in place during the backward pass")
        if with_bias:  # first: it reads the rows one by one, so that the product finds them in the cache
            bias = rows.sum(0) if bias is None else bias.add_(rows.sum(0))
        weight = rows.t().mm(x) if weight is None else weight.addmm_(rows.t(), x)
    return weight, bias


class _Linear(Inner):
    @staticmethod
    def forward(ctx: Any, products: Products, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.products = products
        ctx.save_for_backward(value, weight)
        return nn.functional.linear(value, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise Unsupported(NO_SECOND_DERIVATIVE)
        value, weight = ctx.saved_tensors
        rows, inputs = grad.reshape(-1, weight.shape[0]), value.reshape(-1, weight.shape[1])
        if torch._C._will_engine_execute_node(weight.grad_fn):
            task = ctx.products.setdefault(torch._C._current_graph_task_id(), [])
            task.append((inputs, inputs._version, rows, rows._version))
        return None, rows.mm(weight).view_as(value) if ctx.needs_input_grad[1] else None, None, None
