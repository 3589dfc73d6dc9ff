"""What a namespace leads to: every tensor, module and optimiser that its values hold, in one order on all ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbpar.values.rank_values import RankValues
from nbpar.values.refs import RankRef
from nbpar.values.tensors import gradient_of

_LEAVES = (
    str, bytes, bytearray, int, float, complex, bool, type(None), type, np.ndarray, np.generic, ModuleType, CodeType, FrameType,
    BuiltinFunctionType, torch.dtype, torch.device, torch.Size, torch.Generator, torch.UntypedStorage, property,
    RankRef, RankValues,  # what they stand for is on the ranks; they lead to the whole world
)  # fmt: skip


def reach(namespace: Mapping[str, Any], without: Iterable[str] = (), *, follow: bool = True) -> Iterator[Any]:
    """Every object that the values lead to, each once, parents first. Names that begin with __ are Python's own.

    follow: also the globals that functions of the notebook use.
    """
    skipped = set(without)
    todo = deque(value for name, value in list(namespace.items()) if not name.startswith("__") and name not in skipped)
    seen: set[int] = {id(namespace)}
    kept = []  # ids stay unique while their objects live
    while todo:
        thing = todo.popleft()
        if id(thing) in seen or isinstance(thing, _LEAVES):
            continue
        seen.add(id(thing))
        kept.append(thing)
        yield thing
        todo.extend(_held(thing, follow))


def _held(thing: Any, follow: bool) -> list[Any]:
    if isinstance(thing, Tensor):
        attributes = list(thing.__dict__.values())
        return attributes if (grad := gradient_of(thing)) is None else [grad, *attributes]
    if isinstance(thing, Mapping):
        try:
            return [*thing.keys(), *thing.values()]
        except Exception:
            return []
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return list(thing)
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        return [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *(_globals(thing) if follow else ())]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    slots = [getattr(thing, name, None) for kind in type(thing).__mro__ for name in _slots(kind)]
    inside = list(getattr(thing, "__dict__", {}).values())
    return inside + slots


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _globals(function: FunctionType) -> list[Any]:
    """Globals that a function written in the notebook uses; those of an installed module are its own business."""
    if function.__module__ not in ("__main__", None):
        return []
    return [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def modules(namespace: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    """Modules by the name that holds them, outermost first; those held by other objects get their class's name."""
    named = [(name, value) for name, value in namespace.items() if isinstance(value, nn.Module) and not name.startswith("__")]
    known = {id(part) for _, value in named for part in value.modules()}
    for thing in reach(namespace):
        if isinstance(thing, nn.Module) and id(thing) not in known:
            named.append((type(thing).__name__, thing))
            known.update(id(part) for part in thing.modules())
    return named


def optimisers(namespace: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    return [thing for thing in reach(namespace) if isinstance(thing, torch.optim.Optimizer)]
