"""A submodule that one rank holds is one step on the others, not one step for each operation: meta operations are dear."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nbpar.errors import Unsupported

from .channel import channel
from .dispatch import Dispatch
from .failures import zeros
from .home import owner, wrote
from .layers import parts_of
from .operands import own, tensors
from .probe import A_TENSOR, Outline, probe
from .pure import CONSTANTS, Impure, Read, Source, constants_in, mentions, now, read
from .remote import Input, Result, edge
from .transfer import bring
from .unit import Lent, Unit, hooks_of, places_of, seen, watched

_SECOND_DERIVATIVES = frozenset({"create_graph", "hessian", "jacobian", "hvp", "vhp", "saved_tensors_hooks"})
_NOT_THE_CELL = frozenset({"torch", "nbpar", "IPython", "ipykernel", "runpy", "threading"})
NOT_ONE_STEP = object()
_KNOWN = (Tensor, *CONSTANTS)


class Units:
    """Runs modules as one step where that is safe. `why` names those that run operation by operation, and the reason."""

    def __init__(self, on: bool, dispatch: Dispatch) -> None:
        self.on, self.dispatch = on, dispatch
        self._homes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[nn.Module, Unit] = WeakKeyDictionary()
        self._apart: WeakSet[nn.Module] = WeakSet()  # whose parts were put on several ranks
        self.why: dict[str, str] = {}
        self.used = False
        self._outlines: WeakKeyDictionary[nn.Module, dict[Any, Outline | None]] = WeakKeyDictionary()
        self._read: WeakKeyDictionary[nn.Module, Read | None] = WeakKeyDictionary()
        self._codes: dict[int, tuple[bool, CodeType]] = {}  # by their ids: a code's hash is slow

    def settle(self, homes: Mapping[nn.Module, int]) -> None:
        """Modules were put on these ranks."""
        self._homes.update(homes)
        self._known.clear()
        self._apart.clear()

    def call(self, module: nn.Module, args: Any, kwargs: Any, forward: Any) -> Any:
        """The module's result, or NOT_ONE_STEP. Called with the mode off."""
        unit = self._unit(module)
        if unit is None or self._wants_second_derivatives() or watched(unit.parameters):
            return NOT_ONE_STEP
        leaves, tree = _flattened(args, kwargs)
        outline = self._outline(unit, module, leaves, tree)
        if outline is None:
            return NOT_ONE_STEP
        self.used = True
        self.dispatch.note(outline.way)
        rank, here = unit.rank, channel().rank == unit.rank
        leaves = [bring(leaf, rank) if isinstance(leaf, Tensor) and owner(leaf) != rank else leaf for leaf in leaves]
        lent = self.dispatch.late.instead(unit.parameters)
        lent.update((id(value), bring(value, rank)) for value in unit.parameters if owner(value) != rank)
        out = None
        if here:
            args, kwargs = (leaves, {}) if tree is _tree(len(leaves)) else tree_unflatten(leaves, tree)
            with Lent([(table, name, lent[id(value)]) for table, name, value in unit.places if id(value) in lent]):
                out = self._run(lambda: self.dispatch.late.call(forward, module, args, kwargs), outline)
        self._confirm(module, outline, out, rank)
        if outline.changes:
            for buffer in unit.buffers:
                wrote(buffer)
        result = own(out, rank) if here else _elsewhere(outline, unit, leaves, lent)
        if self.dispatch.early:
            self.dispatch.early.made(result)
        if outline.changes and self.dispatch.on_change:
            self.dispatch.on_change(result)
        return result

    def _run(self, forward: Callable[[], Any], outline: Outline) -> Any:
        if self.dispatch.failures is None:
            return forward()
        return self.dispatch.failures.run(forward, lambda: _zeros(outline))

    def _unit(self, module: nn.Module) -> Unit | None:
        """None where it may not be one."""
        if module in self._apart:
            return None
        unit = self._known.get(module)
        if unit is not None and unit.unchanged(module):
            return unit
        self._known.pop(module, None)
        return self._look(module) if self.on else None

    def _look(self, module: nn.Module) -> Unit | None:
        parts = parts_of(module)
        places = places_of(parts)
        buffers = [value for part in parts for value in part._buffers.values() if value is not None]
        rank, placed = self._home(parts, [value for _, _, value in places], buffers)
        hooks = [hooks for part in parts for hooks in hooks_of(part)]
        if rank is None and placed:
            self._apart.add(module)
        if rank is None or any(hooks) or any("forward" in vars(part) for part in parts):
            return None
        known = self._read.get(module)
        if module not in self._read or (known is not None and not known.unchanged()):
            known = self._read[module] = self._checked(module, read, module)
        if known is None:
            return None
        constants = tuple([constant for part in parts for constant in constants_in(part)])
        return Unit(module, rank, placed, parts[1:], places, buffers, hooks, constants, known)

    def _home(self, parts: Sequence[nn.Module], parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> tuple[int | None, bool]:
        """The one rank of a module, if it has one: where its layers were placed, else where its tensors live. Whether it is the
        former."""
        if not parameters:
            return None, False
        planned = {self._homes.get(part) for part in parts if part._parameters or part._buffers}
        placed = None not in planned
        if not placed:
            planned = {owner(value) for value in (*parameters, *buffers)}
        return planned.pop() if len(planned) == 1 else None, placed

    def _outline(self, unit: Unit, module: nn.Module, leaves: list[Any], tree: TreeSpec) -> Outline | None:
        key = _signature(leaves, tree, unit.read.constants)
        if key is None:
            return None
        outline = unit.outlines.get(key)
        if outline is None and key not in unit.outlines:
            known, whole = self._outlines.setdefault(module, {}), (key, unit.seen, unit.constants, unit.read.then)
            if whole not in known:
                known[whole] = self._checked(module, probe, module, leaves, tree)
            outline = unit.outlines[key] = known[whole]
            if outline is not None and not any(isinstance(part, nn.RNNBase) for part in (module, *unit.inner)):
                self._known[module] = unit  # what is held of a recurrent layer would keep its weak references, which stop swaps
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
        if outline.told and channel().rank != rank:
            return
        got = [Result.of(leaf) for leaf in tensors(out)]
        if not outline.told:
            told = channel().tell(got, rank)
            if len(told) != len(outline.results):
                raise Unsupported(f"{type(module).__name__} gives {len(told)} tensors, {len(outline.results)} in a dry run")
            outline.results, outline.told = told, True
        elif got != outline.results:
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


def _flattened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], TreeSpec]:
    """What `tree_flatten` gives of both, sooner where they are a few tensors."""
    if not kwargs and all(type(arg) is Tensor for arg in args):
        return list(args), _tree(len(args))
    return tree_flatten((args, kwargs))


@cache
def _tree(count: int) -> TreeSpec:
    return tree_flatten(((A_TENSOR,) * count, {}))[1]


def _signature(leaves: Sequence[Any], tree: TreeSpec, sources: list[Source]) -> Any:
    """What an outline depends on besides the unit itself; None if an argument is neither a tensor nor a constant."""
    if not all(isinstance(leaf, _KNOWN) for leaf in leaves):
        return None
    device = channel().device.type
    return (
        tuple([seen(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]),
        None if tree is _tree(len(leaves)) else tree,  # its hash is slow
        now(sources) if sources else (),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.is_inference_mode_enabled(),
    )


def _zeros(outline: Outline) -> Any:
    made = (zeros(result.empty().requires_grad_(result.requires_grad)) for result in outline.results)
    return tree_unflatten([next(made) if leaf is A_TENSOR else leaf for leaf in outline.leaves], outline.tree)


def _elsewhere(outline: Outline, unit: Unit, leaves: Sequence[Any], lent: Mapping[int, Tensor]) -> Any:
    """What the owner has, as the other ranks see it."""
    for draw in outline.draws:
        draw()
    inputs: list[tuple[Tensor, Input | None]] = [(leaf, edge(leaf)) for leaf in leaves if isinstance(leaf, Tensor)]
    for value, known in zip(unit.parameters, unit.inputs, strict=True):
        other = lent.get(id(value))
        inputs.append((value, known if value.requires_grad else None) if other is None else (other, edge(other)))
    pairs = zip(outline.results, outline.edges, strict=True)
    made = iter([result.make(unit.rank, [inputs[i] for i in edges]) for result, edges in pairs])
    results = [next(made) if leaf is A_TENSOR else leaf for leaf in outline.leaves]
    return results[0] if outline.tree.is_leaf() else tree_unflatten(results, outline.tree)
