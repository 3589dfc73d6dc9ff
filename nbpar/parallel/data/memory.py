"""Whose memory a tensor shows, and whether operators write to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data.operators import operator

OUTSIDE = "it writes to a tensor that is neither an argument nor a buffer of its: make it one with `register_buffer`"
GIVES_BACK = "it returns an argument, or a view of one: of its rows that would be a copy; return a `.clone()`"


def memory(tensors: Iterable[Tensor]) -> dict[int, Any]:
    """The tensors' storages by address, kept alive."""
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors if is_strided(tensor))}


def targets(function: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes to."""
    return tensors(*(args[at] if at < len(args) else kwargs.get(name) for at, name in operator(function).written))


class Writes:
    """Notes whether operators write to some tensors' memory, whatever view of it they are given."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        self.storages = memory(self.tensors)
        self.seen = False

    def see(self, function: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.seen |= any(map(self.holds, targets(function, args, kwargs)))

    def holds(self, value: Any) -> bool:
        return is_strided(value) and value.untyped_storage()._cdata in self.storages


class Own:
    """The memory that a call may write to: its arguments', its modules' and what it makes."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._storages = memory(tensors)

    def guard(self, function: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """An operator is about to run. Raises RuntimeError if it would write to anything else."""
        if function.namespace == "c10d" or operator(function).name == "resize_":  # ranks talk to each other meanwhile
            return
        for value in targets(function, args, kwargs):
            if is_strided(value) and value.untyped_storage()._cdata not in self._storages:
                raise RuntimeError(OUTSIDE)

    def made(self, function: Any, given: Iterable[Tensor], result: Any) -> None:
        """An operator has run: what shares no memory with its arguments is new, and so is what Python has just made."""
        before = memory(given) if operator(function).name != "lift_fresh" else {}
        self._storages.update((key, storage) for key, storage in memory(tensors(result)).items() if key not in before)


def show(values: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether a tensor of the ones shows memory of the others, or would where they are."""

    def places(values: Iterable[Any]) -> set[int]:
        return {value.untyped_storage()._cdata for value in values if type(value) is Tensor and value.layout == torch.strided}

    with torch._C.DisableTorchFunction():  # else each look is an operation of the cell
        return not places(values).isdisjoint(places(others))


def is_strided(value: Any) -> bool:
    return type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_meta


def is_elsewhere(value: Any) -> bool:
    """Whether it stands for memory that cannot be followed."""
    return isinstance(value, Tensor) and type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__


NESTED = (tuple, list)
PLAIN = frozenset((int, float, bool, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def tensors(*values: Any) -> list[Tensor]:
    """Every tensor among values and inside their tuples, lists and dicts. Called for each operator: it must be quick."""
    found: list[Tensor] = []
    for value in values:
        if type(value) in PLAIN:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, NESTED):
            if value:
                found += tensors(*value)
        elif isinstance(value, dict) and value:
            found += tensors(*value.values())
    return found
