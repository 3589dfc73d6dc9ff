"""A submodule that one rank holds is one step on the others, not one step for each operation: meta operations are dear."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
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
from .operands import own, tensors
from .probe import A_TENSOR, Outline, probe
from .pure import CONSTANTS, Impure, Source, constants_in, constants_read, mentions, now
from .remote import Result
from .transfer import bring

_SECOND_DERIVATIVES = frozenset({"create_graph", "hessian", "jacobian", "hvp", "vhp", "saved_tensors_hooks"})
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NOT_THE_CELL = frozenset({"torch", "nbpar", "IPython", "ipykernel", "runpy", "threading"})
NOT_ONE_STEP = object()

Place = tuple[nn.Module, str, Tensor]  # a parameter: of which module, its name there


class Units:
    """Runs modules as one step where that is safe. `why` names those that run operation by operation, and the reason."""

    def __init__(self, on: bool, dispatch: Dispatch) -> None:
        self.on, self.dispatch = on, dispatch
        self.homes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self.why: dict[str, str] = {}
        self.used = False
        self._outlines: WeakKeyDictionary[nn.Module, dict[Any, Outline | None]] = WeakKeyDictionary()
        self._sources: WeakKeyDictionary[nn.Module, list[Source] | None] = WeakKeyDictionary()
        self._codes: dict[int, tuple[bool, CodeType]] = {}  # by their ids: a code's hash is slow

    def call(self, module: nn.Module, args: Any, kwargs: Any, forward: Any) -> Any:
        """The module's result, or NOT_ONE_STEP. Called with the mode off."""
        parts = _parts(module)  # once: calls are many
        places = _places(parts)
        parameters = [value for _, _, value in places]
        buffers = [value for part in parts for value in part._buffers.values() if value is not None]
        rank = self._home(parts, parameters, buffers)
        if rank is None or not self.on or self._wants_second_derivatives() or _hooked(parts, parameters):
            return NOT_ONE_STEP
        leaves, tree = _flattened(args, kwargs)
        outline = self._outline(module, parts, parameters, leaves, tree)
        if outline is None:
            return NOT_ONE_STEP
        self.used = True
        leaves = [bring(leaf, rank) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        lent = self.dispatch.late.instead(parameters)
        lent.update((id(value), bring(value, rank)) for value in parameters if owner(value) != rank)
        out = None
        if channel().rank == rank:
            args, kwargs = tree_unflatten(leaves, tree)
            with _lent([(part, name, lent[id(value)]) for part, name, value in places if id(value) in lent]):
                out = self._run(lambda: self.dispatch.late.call(forward, module, args, kwargs), outline)
        self._confirm(module, outline, out, rank)
        if outline.changes:
            for buffer in buffers:
                wrote(buffer)
        if channel().rank == rank:
            result = own(out, rank)
        else:
            result = self._remote(outline, leaves, [lent.get(id(value), value) for value in parameters], rank)
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
    def _remote(outline: Outline, leaves: list[Any], parameters: list[Tensor], rank: int) -> Any:
        for draw in outline.draws:
            draw()
        return _elsewhere(outline, [leaf for leaf in leaves if isinstance(leaf, Tensor)] + parameters, rank)

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
        outline = known.get(key)  # the key's hash is slow
        if outline is None and key not in known:
            outline = known[key] = self._checked(module, probe, module, leaves, tree)
        return outline

    def _checked(self, module: nn.Module, check: Any, *args: Any) -> Any:
        try:
            return check(*args)
        except Impure as why:
            self.why.setdefault(type(module).__name__, str(why))
            return None

    @staticmethod
    def _confirm(module: nn.Module, outline: Outline, out: Any, rank: int) -> None:
        """The owner tells what it really got, once; afterwards it must get the same again."""
        got = [Result.of(leaf) for leaf in tensors(out)]
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
            known = self._codes.get(id(code))
            if known is None:
                inside = frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_CELL
                known = self._codes[id(code)] = not inside and mentions(code, _SECOND_DERIVATIVES), code
            if known[0]:
                return True
            frame = frame.f_back
        return False


def _parts(module: nn.Module) -> list[nn.Module]:
    """What `modules` gives, sooner."""
    found: dict[int, nn.Module] = {}
    todo: list[nn.Module | None] = [module]
    while todo:
        part = todo.pop()
        if part is not None and id(part) not in found:
            found[id(part)] = part
            todo.extend(reversed(part._modules.values()))
    return list(found.values())


def _places(parts: Iterable[nn.Module]) -> list[Place]:
    """The parameters that `parameters` gives, each where it is first."""
    found: dict[int, Place] = {}
    for part in parts:
        for name, value in part._parameters.items():
            if value is not None:
                found.setdefault(id(value), (part, name, value))
    return list(found.values())


@contextmanager
def _lent(values: Sequence[Place]) -> Iterator[None]:
    """While it lasts, modules use these for their parameters of those names."""
    own = [part._parameters[name] for part, name, _ in values]
    for part, name, value in values:
        part._parameters[name] = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for (part, name, _), mine in zip(values, own, strict=True):
            part._parameters[name] = mine


def _flattened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], TreeSpec]:
    """What `tree_flatten` gives of both, sooner where they are a few tensors."""
    if not kwargs and all(type(arg) is Tensor for arg in args):
        return list(args), _tree(len(args))
    return tree_flatten((args, kwargs))


@cache
def _tree(count: int) -> TreeSpec:
    return tree_flatten(((A_TENSOR,) * count, {}))[1]


def _hooked(parts: Sequence[nn.Module], parameters: Sequence[Tensor]) -> bool:
    """Hooks that people set see every operation, on every rank."""
    for part in parts:
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return True
    return any(value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None) for value in parameters)


def _signature(
    parts: Sequence[nn.Module], parameters: Sequence[Tensor], leaves: Sequence[Any], tree: TreeSpec, sources: list[Source]
) -> Any:
    """All that an outline depends on; None if an argument is neither a tensor nor a constant."""
    if not all(isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in leaves):
        return None
    device = channel().device.type
    return (
        tuple([_seen(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]),
        None if tree is _tree(len(leaves)) else tree,  # its hash is slow
        tuple([_seen(value) for value in parameters]),
        tuple([constant for part in parts for constant in constants_in(part)]),
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
