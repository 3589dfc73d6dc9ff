"""A submodule that one rank holds is one step on the others, not one step for each operation: meta operations are dear."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nbpar.errors import Unsupported

from .channel import channel
from .dispatch import Dispatch
from .failures import zeros
from .home import owner, wrote
from .operands import own
from .probe import A_TENSOR, Outline, probe
from .pure import CONSTANTS, Impure, Source, constants_in, constants_read, mentions, now
from .remote import Result
from .transfer import bring

_SECOND_DERIVATIVES = frozenset({"create_graph", "hessian", "jacobian", "hvp", "vhp", "saved_tensors_hooks"})
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NOT_THE_CELL = frozenset({"torch", "nbpar", "IPython", "ipykernel", "runpy", "threading"})
NOT_ONE_STEP = object()


class Units:
    """Runs modules as one step where that is safe. `why` names those that run operation by operation, and the reason."""

    def __init__(self, on: bool, dispatch: Dispatch) -> None:
        self.on, self.dispatch = on, dispatch
        self.homes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self.why: dict[str, str] = {}
        self.used = False
        self._outlines: WeakKeyDictionary[nn.Module, dict[Any, Outline | None]] = WeakKeyDictionary()
        self._sources: WeakKeyDictionary[nn.Module, list[Source] | None] = WeakKeyDictionary()
        self._codes: dict[CodeType, bool] = {}

    def call(self, module: nn.Module, args: Any, kwargs: Any, forward: Any) -> Any:
        """The module's result, or NOT_ONE_STEP. Called with the mode off."""
        walked = list(module.named_modules())  # once: calls are many
        parts, named = [part for _, part in walked], _parameters(walked)
        parameters = list(named.values())
        buffers = [value for part in parts for value in part._buffers.values() if value is not None]
        rank = self._home(parts, parameters, buffers)
        if rank is None or not self.on or self._wants_second_derivatives() or _hooked(parts, parameters):
            return NOT_ONE_STEP
        leaves, tree = tree_flatten((args, kwargs))
        outline = self._outline(module, parts, parameters, leaves, tree)
        if outline is None:
            return NOT_ONE_STEP
        self.used = True
        leaves = [bring(leaf, rank) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        foreign = {name: bring(value, rank) for name, value in named.items() if owner(value) != rank}
        out = None
        if channel().rank == rank:
            args, kwargs = tree_unflatten(leaves, tree)
            with _lent(module, foreign):
                out = self._run(lambda: forward(module, *args, **kwargs), outline)
        self._confirm(module, outline, out, rank)
        if outline.changes:
            for buffer in buffers:
                wrote(buffer)
        result = own(out, rank) if channel().rank == rank else self._remote(outline, leaves, {**named, **foreign}, rank)
        if self.dispatch.early:
            self.dispatch.early.made(result)
        if outline.changes and self.dispatch.on_change:
            self.dispatch.on_change(result)
        return result

    def _run(self, forward: Callable[[], Any], outline: Outline) -> Any:
        if self.dispatch.failures is None:
            return forward()
        return self.dispatch.failures.run(forward, lambda: _zeros(outline))

    @staticmethod
    def _remote(outline: Outline, leaves: list[Any], parameters: Mapping[str, Tensor], rank: int) -> Any:
        for draw in outline.draws:
            draw()
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)] + list(parameters.values())
        return _elsewhere(outline, inputs, rank)

    def _home(self, parts: Sequence[nn.Module], parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> int | None:
        """The one rank of a module, if it has one: where its layers were placed, else where its tensors live."""
        if not parameters:
            return None
        planned = {self.homes.get(part) for part in parts if part._parameters or part._buffers}
        if None in planned:
            planned = {owner(value) for value in (*parameters, *buffers)}
        return planned.pop() if len(planned) == 1 else None

    def _outline(
        self, module: nn.Module, parts: list[nn.Module], parameters: Sequence[Tensor], leaves: list[Any], tree: TreeSpec
    ) -> Outline | None:
        if module not in self._sources:
            self._sources[module] = self._checked(module, constants_read, module)
        sources = self._sources[module]
        if sources is None:
            return None
        key = _signature(parts, parameters, leaves, tree, sources)
        known = self._outlines.setdefault(module, {})
        if key is None:
            return None
        if key not in known:
            known[key] = self._checked(module, probe, module, leaves, tree)
        return known[key]

    def _checked(self, module: nn.Module, check: Any, *args: Any) -> Any:
        try:
            return check(*args)
        except Impure as why:
            self.why.setdefault(type(module).__name__, str(why))
            return None

    @staticmethod
    def _confirm(module: nn.Module, outline: Outline, out: Any, rank: int) -> None:
        """The owner tells what it really got, once; afterwards it must get the same again."""
        got = [Result.of(leaf) for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        if not outline.told:
            told = channel().tell(got, rank)
            if len(told) != len(outline.results):
                raise Unsupported(f"{type(module).__name__} gives {len(told)} tensors, {len(outline.results)} in a dry run")
            outline.results, outline.told = told, True
        elif channel().rank == rank and got != outline.results:
            raise Unsupported(f"{type(module).__name__}: the shapes that it gives depend on values")

    def _wants_second_derivatives(self) -> bool:
        """Whether a function on the stack asks for derivatives of derivatives, which steps do not have."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code not in self._codes:
                inside = frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_CELL
                self._codes[code] = not inside and mentions(code, _SECOND_DERIVATIVES)
            if self._codes[code]:
                return True
            frame = frame.f_back
        return False


def _parameters(walked: Iterable[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """What `named_parameters` gives: each once, by its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, part in walked:
        for name, value in part._parameters.items():
            if value is not None:
                found.setdefault(id(value), (f"{prefix}.{name}" if prefix else name, value))
    return dict(found.values())


@contextmanager
def _lent(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, the module uses these for its parameters of those names."""
    holders = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in values]
    own: list[Any] = [holder._parameters[name] for holder, name in holders]
    lent: list[Any] = list(values.values())
    for (holder, name), value in zip(holders, lent, strict=True):
        holder._parameters[name] = value
    try:
        yield
    finally:
        for (holder, name), value in zip(holders, own, strict=True):
            holder._parameters[name] = value


def _hooked(parts: Sequence[nn.Module], parameters: Sequence[Tensor]) -> bool:
    """Hooks that people set see every operation, on every rank."""
    return any(getattr(part, hooks) for part in parts for hooks in HOOKS) or any(
        value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None) for value in parameters
    )


def _signature(
    parts: Sequence[nn.Module], parameters: Sequence[Tensor], leaves: Sequence[Any], tree: TreeSpec, sources: list[Source]
) -> Any:
    """All that an outline depends on; None if an argument is neither a tensor nor a constant."""
    if not all(isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in leaves):
        return None
    device = channel().device.type
    return (
        tuple(_seen(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves),
        tree,
        tuple(_seen(value) for value in parameters),
        tuple(constant for part in parts for constant in constants_in(part)),
        now(sources),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.is_inference_mode_enabled(),
    )


def _seen(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype, value.requires_grad


def _zeros(outline: Outline) -> Any:
    made = (zeros(result.empty().requires_grad_(result.requires_grad)) for result in outline.results)
    return tree_unflatten([next(made) if leaf is A_TENSOR else leaf for leaf in outline.leaves], outline.tree)


def _elsewhere(outline: Outline, inputs: Sequence[Tensor], rank: int) -> Any:
    pairs = zip(outline.results, outline.edges, strict=True)
    made = iter([result.make(rank, [inputs[i] for i in edges]) for result, edges in pairs])
    return tree_unflatten([next(made) if leaf is A_TENSOR else leaf for leaf in outline.leaves], outline.tree)
