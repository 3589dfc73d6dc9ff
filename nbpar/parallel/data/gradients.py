"""Gradients of what split calls use are averaged by the end of each backward pass, in a few collectives.

Parameters stay in place. A split call knows its leaves: the module's parameters, and what a walk of its graph finds beyond them.
When a backward pass enters a call (`reached`), those leaves are due, and what they have got when the pass ends is averaged.
An average is linear and leaves alone what is alike on all ranks, so shares from outside the call stay right.

Where a person's own hooks see a gradient on its way, it is averaged at once, before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nbpar.errors import Unsupported
from nbpar.parallel.data import context
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.inner import Inner
from nbpar.parallel.patch import patched

BUCKET = 32 << 20  # bytes in one collective
ALONE = 2 << 20  # a gradient of this many bytes is reduced where it is, without a copy
AHEAD_OF_DATA = "_nbpar_ahead"  # an attribute of tensors that others were made from before they had data
TOO_LATE = "The gradient of a model's large output is asked for after its loss was made. Take a copy: `logits = model(x).clone()`."
OUTSIDE = "nbpar: made outside a split call"


@dataclass
class Due:
    """A leaf whose gradient a pass must average, and what it had before."""

    leaf: Tensor
    grad: Tensor | None
    version: int

    @classmethod
    def of(cls, leaf: Tensor) -> Due:
        grad = leaf.grad
        return cls(leaf, grad, -1 if grad is None else grad._version)

    @property
    def got(self) -> bool:
        grad = self.leaf.grad
        return grad is not None and (grad is not self.grad or grad._version != self.version)


@dataclass
class Pass:
    """One run of the autograd engine."""

    accumulates: bool
    ours: bool = True
    calls: list[Call] = field(default_factory=list)
    due: dict[int, Due] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)


class Gradients:
    """Averages gradients while `installed`. central: through rank 0."""

    def __init__(self, ranks: Ranks, central: bool = False) -> None:
        self.ranks, self.central = ranks, central
        self.now: Pass | None = None
        self.passes = 0
        self.active = False  # a call has been split

    @contextmanager
    def installed(self) -> Iterator[None]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                if (
                    not self.active or self.now is not None or context.running is not None
                ):  # inside another pass, or a call's own business
                    return original(*args, **kwargs)
                return self._run(original, args, kwargs)

            return run

        with patched(torch.autograd, "_engine_run_backward", make):
            yield

    def _run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        create, inputs = args[3], args[4]
        if any(hasattr(given, AHEAD_OF_DATA) for given in inputs):
            raise Unsupported(TOO_LATE)
        now = self.now = Pass(kwargs.get("accumulate_grad", False))
        try:
            results = original(*args, **kwargs)
        finally:
            self.now = None
            for hook in now.hooks:
                hook.remove()
        if not now.calls:
            return results
        self.passes += 1
        if now.accumulates:
            self._average_grads(now, create)
            return results
        return self._average_results(now, inputs, results, create)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Gradients meanwhile are this rank's share."""
        self.now = Pass(accumulates=False, ours=False)
        try:
            yield
        finally:
            self.now = None

    def reached(self, call: Call) -> None:
        now = self.now
        if now is None or not now.ours or call in now.calls:
            return
        now.calls.append(call)
        for leaf in call.leaves:
            if id(leaf) not in now.due:
                now.due[id(leaf)] = Due.of(leaf)
                if has_hooks(leaf):
                    now.hooks.append(first_hook(leaf, lambda grad: Average.apply([call], grad)[0]))

    def _average_grads(self, now: Pass, create: bool) -> None:
        due = [entry for entry in now.due.values() if not has_hooks(entry.leaf)]
        used = self._used([entry.got for entry in due], now.calls)
        due = [entry for entry, one in zip(due, used, strict=True) if one]
        if create:
            grads = [entry.leaf.grad if entry.leaf.grad is not None else torch.zeros_like(entry.leaf) for entry in due]
            for entry, grad in zip(due, Average.apply(now.calls, *grads) if due else (), strict=True):
                entry.leaf.grad = grad
            return
        for entry in due:
            if entry.leaf.grad is None:
                entry.leaf.grad = torch.zeros_like(entry.leaf)
        average([entry.leaf.grad for entry in due if entry.leaf.grad is not None], self.ranks, self.central)

    def _average_results(self, now: Pass, inputs: Sequence[Any], results: Sequence[Tensor | None], create: bool) -> Any:
        """`autograd.grad` gave this rank's share of what leaves, and nodes from outside a call, get from inside."""
        due = [at for at, given in enumerate(inputs) if self._is_due(now, given)]
        used = self._used([results[at] is not None for at in due], now.calls)
        due = [at for at, one in zip(due, used, strict=True) if one]
        if not due:
            return results
        grads = [results[at] if results[at] is not None else torch.zeros_like(inputs[at]) for at in due]
        with torch.set_grad_enabled(create):
            averaged = Average.apply(now.calls, *grads)
        whole = list(results)
        for at, grad in zip(due, averaged, strict=True):
            whole[at] = grad
        return tuple(whole)

    def _is_due(self, now: Pass, given: Any) -> bool:
        if not isinstance(given, Tensor):
            return False
        if given.grad_fn is None:
            return id(given) in now.due and not has_hooks(given)
        return OUTSIDE in given.grad_fn.metadata  # type: ignore[operator]

    def _used(self, got: list[bool], calls: Sequence[Call]) -> list[bool]:
        """Which leaves any rank has a gradient for."""
        if not got or all(call.even for call in calls):
            return got
        mask = torch.tensor(got, dtype=torch.uint8)
        self.ranks.all_reduce(mask, "agreement")
        return [bool(one) for one in mask.tolist()]


def has_hooks(leaf: Tensor) -> bool:
    """Whether anybody sees this leaf's gradient before the pass has ended."""
    return bool(leaf._backward_hooks) or bool(getattr(leaf, "_post_accumulate_grad_hooks", None))


def first_hook(leaf: Tensor, hook: Callable[[Tensor], Tensor]) -> Any:
    """Register a hook that runs before the others. The engine reads the dictionary's order as it was filled."""
    handle = leaf.register_hook(hook)
    hooks: Any = leaf._backward_hooks
    items = list(hooks.items())
    hooks.clear()
    hooks.update([items[-1], *items[:-1]])
    return handle


class Average(Inner):
    """The ranks' average of several gradients, in one node."""

    @staticmethod
    def forward(ctx: Any, calls: Sequence[Call], *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.calls = calls
        averaged = [grad.detach().clone() for grad in grads]
        average(averaged, calls[0].ranks)
        return tuple(averaged)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        for call in ctx.calls:
            call.reached()
        return None, *Average.apply(ctx.calls, *grads)


def average(tensors: Sequence[Tensor], ranks: Ranks, central: bool = False) -> None:
    """Average over ranks, in place: large tensors where they are, small ones in buckets by type."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in ranks.parts(tensors):
        if tensor.layout != torch.strided:
            average_sparse(tensor, ranks)
        elif tensor.numel() * tensor.element_size() >= ALONE and tensor.is_contiguous():
            reduce(tensor, ranks, central).div_(ranks.size)
        else:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in kinds.values():
        for bucket in buckets(group):
            flat = reduce(torch.cat([tensor.reshape(-1) for tensor in bucket]), ranks, central).div_(ranks.size)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view(tensor.shape) for part, tensor in zip(parts, bucket, strict=True)])


def reduce(tensor: Tensor, ranks: Ranks, central: bool) -> Tensor:
    return ranks.through_root(tensor) if central else ranks.all_reduce(tensor, "gradients")


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def average_sparse(tensor: Tensor, ranks: Ranks) -> None:
    """A sparse gradient (`nn.Embedding(sparse=True)`) stays sparse."""
    own = tensor.coalesce()
    parts = ranks.objects((own.indices(), own.values()), ranks.group)
    indices = torch.cat([part[0] for part in parts], dim=1)
    values = torch.cat([part[1] for part in parts]) / ranks.size
    with torch.no_grad():
        tensor.copy_(torch.sparse_coo_tensor(indices, values, tensor.shape).coalesce())


def now() -> int:
    """The number of the next autograd node."""
    return torch._C._autograd._get_sequence_nr()


@dataclass
class Graph:
    """What a call's local outputs depend on: leaves, and nodes made before it began (outside).

    hidden: whether there may be leaves beyond what can be seen, as a reentrant checkpoint hides its own.
    """

    leaves: list[Tensor]
    outside: list[Any]
    hidden: bool


def walk(outputs: Sequence[Tensor], start: int) -> Graph:
    """From a call's local outputs. start: `now()` when it began."""
    stack = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen = set(stack)
    leaves, outside, hidden = [], [], False
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        elif node._sequence_nr() < start:
            outside.append(node)
        elif not is_entrance(node):
            hidden |= node.name() == "CheckpointFunctionBackward"
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    stack.append(following)
    leaves += [tensor for tensor in outputs if tensor.grad_fn is None and tensor.requires_grad]
    return Graph(leaves, outside, hidden)


def is_entrance(node: Any) -> bool:
    """Whether another call, or none, begins behind this node."""
    return getattr(getattr(node, "_forward_cls", None), "entrance", False)


def average_outside(nodes: Sequence[Any], call: Call) -> None:
    """What nodes from outside get from inside the call is averaged on its way."""
    for node in nodes:
        node.metadata[OUTSIDE] = True
        node.register_prehook(lambda grads: tuple(None if grad is None else Average.apply([call], grad)[0] for grad in grads))
