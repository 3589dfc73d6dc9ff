"""A dry run of a submodule on meta, on every rank alike: what it gives, draws and depends on, or why it is not one step."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from nbpar.parallel.ways import step
from nbpar.uncompiled import Mode

from . import table
from .draws import drawn_within, draws_nothing, redraw, redraw_within
from .home import empty
from .pure import CONSTANTS, Impure, check_attributes
from .remote import Result

_OWN_FIELDS = ("_parameters", "_buffers", "_modules", "training")
_MAKES_RANDOM = frozenset(["rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"])

A_TENSOR = object()


@dataclass
class Outline:
    """What the other ranks need to know of a step: its random draws, its results and their edges to the inputs.

    way: that it goes, by the operations that it runs.
    """

    draws: list[Callable[[], None]]
    tree: TreeSpec
    leaves: list[Any]  # constants, and A_TENSOR for each tensor
    results: list[Result]
    edges: list[list[int]]  # for each result: positions among the inputs, tensors first, then parameters
    changes: bool  # whether it changes buffers
    way: int = 0
    told: bool = False  # whether the owner has confirmed the results


@dataclass
class Recorder(TorchFunctionMode):
    """Notes what runs, and random draws. Those that cannot be repeated from shapes alone are refused."""

    steps: list[Hashable] = field(default_factory=list)
    draws: list[Callable[[], None]] = field(default_factory=list)
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        self.steps.append(step(name, args, kwargs))
        if name in _MAKES_RANDOM or name in table.EVERYWHERE:
            raise Impure(f"it calls {name}")
        if name == "__set__":
            raise Impure("it sets an attribute of a tensor")
        if name in table.DRAW and not draws_nothing(name, args, kwargs):
            spec_args, spec_kwargs = tree_map(_spec, (args, kwargs))
            self.draws.append(lambda: redraw(func, spec_args, spec_kwargs))
        elif name in table.DRAW_WITHIN and (draws := drawn_within(name, args, kwargs)):
            self.draws.append(lambda: redraw_within(draws))
        self.inside = name in table.DRAW or name in table.DRAW_WITHIN
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = False


class Guard(Mode):
    """Below autograd: refuses random operations that the recorder did not see."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not self.recorder.inside:
            raise Impure(f"it calls {func}")
        return func(*args, **(kwargs or {}))


def _spec(value: Any) -> Any:
    return empty(value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def probe(module: nn.Module, leaves: Sequence[Any], tree: TreeSpec) -> Outline:
    """Raises Impure, in words, if the module is not one step."""
    check_attributes(module)
    parameters = {name: _leaf(value) for name, value in module.named_parameters()}
    buffers = {name: _spec(value) for name, value in module.named_buffers()}
    inputs = [_leaf(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    passed = [leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf for leaf in inputs]
    recorder = Recorder()
    with unchanged(module), _other_modes_off():
        try:
            with torch._C._EnableTorchFunction(), recorder, Guard(recorder), torch.device("meta"):
                args, kwargs = tree_unflatten(passed, tree)
                state = {**parameters, **buffers}
                out = torch.func.functional_call(module, state, args, kwargs, tie_weights=True)
        except Impure:
            raise
        except Exception as error:
            raise Impure(f"a dry run without values fails ({type(error).__name__})") from error
    if any(isinstance(leaf, Tensor) and not leaf.is_inference() and leaf._version for leaf in passed):
        raise Impure("it changes its input in place")
    sources = [leaf for leaf in inputs if isinstance(leaf, Tensor)] + list(parameters.values())
    outline = _outline(out, sources, [*sources, *buffers.values()], recorder.draws)
    outline.way = hash(tuple(recorder.steps))
    outline.changes = any(not value.is_inference() and value._version for value in buffers.values())
    return outline


def _leaf(value: Tensor) -> Tensor:
    made: Tensor = _spec(value)
    return made.requires_grad_(value.requires_grad)


def _outline(out: Any, sources: list[Tensor], held: list[Tensor], draws: list[Callable[[], None]]) -> Outline:
    leaves, tree = tree_flatten(out)
    results = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(not isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in leaves):
        raise Impure("it gives something else than tensors and constants")
    storages = [value.untyped_storage()._cdata for value in results]
    if len({*storages}) < len(storages) or {*storages} & {value.untyped_storage()._cdata for value in held}:
        raise Impure("its results share memory")
    return Outline(
        draws=draws,
        tree=tree,
        leaves=[A_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves],
        results=[Result.of(value) for value in results],
        edges=[_edges(value, sources) for value in results],
        changes=False,
    )


def _edges(result: Tensor, sources: list[Tensor]) -> list[int]:
    """Which inputs the result's gradient reaches."""
    if not result.requires_grad:
        return []
    ends: dict[Any, int] = {torch.autograd.graph.get_gradient_edge(v).node: i for i, v in enumerate(sources) if v.requires_grad}
    seen: set[Any] = set()
    found: list[int] = []
    todo: list[Any] = [result.grad_fn or torch.autograd.graph.get_gradient_edge(result).node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in ends:
            found.append(ends[node])
        todo.extend(inner for inner, _ in node.next_functions)
    return sorted(found)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Refuses a run that changes attributes, buffers' identity or Python's random states; puts them back in any case."""
    before = [(part, _fields(part), dict(part._buffers)) for part in module.modules()]
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        changed = [type(part).__name__ for part, fields, buffers in before if _put_back(part, fields, buffers)]
        drawn = random.getstate() != states[0] or not _same_state(np.random.get_state(), states[1])
        random.setstate(states[0])
        np.random.set_state(states[1])
    if changed:
        raise Impure(f"{changed[0]} changes its attributes")
    if drawn:
        raise Impure("it draws from Python's or numpy's random stream")


def _same_state(a: Any, b: Any) -> bool:
    return bool(a[2:] == b[2:] and np.array_equal(a[1], b[1]))


def _fields(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Attribute -> itself and, for a container, a copy."""
    return {
        name: (value, value.copy() if isinstance(value, (list, dict, set)) else None)
        for name, value in part.__dict__.items()
        if name not in _OWN_FIELDS
    }


def _put_back(part: nn.Module, fields: dict[str, tuple[Any, Any]], buffers: dict[str, Any]) -> bool:
    changed = {*part.__dict__} - {*_OWN_FIELDS} != {*fields}
    for name in {*part.__dict__} - {*_OWN_FIELDS, *fields}:
        del part.__dict__[name]
    for name, (value, copy) in fields.items():
        changed |= part.__dict__.get(name) is not value and not name.startswith("_flat_weight")
        part.__dict__[name] = value
        if copy is not None and not _same(value, copy):
            changed = True
            _refill(value, copy)
    if {*part._buffers} != {*buffers} or any(part._buffers[name] is not value for name, value in buffers.items()):
        changed = True
        part._buffers.clear()
        part._buffers.update(buffers)
    return changed


def _same(value: Any, copy: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == copy.keys() and all(item is copy[key] for key, item in value.items())
    if isinstance(value, set):
        return bool(value == copy)
    return len(value) == len(copy) and all(a is b for a, b in zip(value, copy, strict=True))


def _refill(value: Any, copy: Any) -> None:
    value.clear()
    value.extend(copy) if isinstance(value, list) else value.update(copy)


@contextmanager
def _other_modes_off() -> Iterator[None]:
    stack = []
    while torch._C._len_torch_function_stack():
        stack.append(_pop_mode())
    try:
        yield
    finally:
        for mode in reversed(stack):
            _push_mode(mode)
