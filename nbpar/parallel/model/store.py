"""Checkpoints of values whose tensors may be on different ranks, in the format of torch.distributed.checkpoint.

A folder: the tensors, by the names that `state_dict` gives them, as torch.distributed.checkpoint writes them; and `structure.pkl`,
the pickled values with holes where the tensors were. Reading the structure runs code of the pickle: read only what you trust.

A snapshot is such a folder in parts, one for each rank, which are joined when they are read: no rank waits for another.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from torch.utils import swap_tensors

from nbpar.errors import OptionError
from nbpar.parallel.alone import together
from nbpar.values.tensors import gradient_of

from .home import empty, give, is_split, pin, unmarked
from .layers import chain, divide, roots, sizes
from .place import weak_lists_off
from .reach import reach

STRUCTURE, PART = "structure.pkl", "part-"
Values = Mapping[str, Any]


def write(values: Values, path: str, *, alone: bool = False) -> None:
    """Every rank writes what it holds. alone: only this process takes part. Gradients are not written."""
    names = _names(values)
    structure = io.BytesIO()
    _Pickler(structure, names).dump(dict(values))  # on every rank: what cannot be pickled is found by all before they meet
    Path(path).mkdir(parents=True, exist_ok=True)
    with together():
        save(_held(values, names), checkpoint_id=path, no_dist=alone)
    if alone or dist.get_rank() == 0:
        Path(path, STRUCTURE).write_bytes(structure.getvalue())


def write_part(values: Values, path: str, others: Mapping[int, Tensor], rank: int, size: int) -> None:
    """What this rank alone holds, and its share of what all of them hold; without the others.

    others: tensors that are written in the place of some, by their ids.
    """
    names = _names(values)
    held: dict[str, Tensor] = {}
    for number, value in enumerate(_tensors(values)):
        here = others.get(id(value), value)
        if not here.is_meta and (is_split(here) or number % size == rank):
            held[names[id(value)]] = here.detach()
    part = Path(path, f"{PART}{rank}")
    part.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        structure = io.BytesIO()
        _Pickler(structure, names).dump(dict(values))
        Path(path, STRUCTURE).write_bytes(structure.getvalue())
    with warnings.catch_warnings(), unmarked(held.values()):
        warnings.simplefilter("ignore")  # that it is done by one process
        save(held, storage_writer=FileSystemWriter(part, sync_files=False), no_dist=True)


class Parts(FileSystemReader):
    """Reads what `write_part` has written on several ranks as one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        parts = sorted(Path(self.path).glob(f"{PART}*"))
        found: list[Any] = [FileSystemReader(part).read_metadata(*args, **kwargs) for part in parts]
        for part, facts in zip(parts, found, strict=True):
            places = facts.storage_data.items()
            facts.storage_data = {at: replace(file, relative_path=f"{part.name}/{file.relative_path}") for at, file in places}
        joined = found[0]
        for facts in found[1:]:
            for name in ("state_dict_metadata", "planner_data", "storage_data"):
                setattr(joined, name, {**getattr(facts, name), **getattr(joined, name)})
        return joined


def reader(path: str) -> FileSystemReader:
    return (Parts if next(Path(path).glob(f"{PART}*"), None) else FileSystemReader)(path)


def read(path: str, *, split: bool) -> dict[str, Any]:
    """The values that were written; each rank reads what it holds. split: the modules' layers are divided over the ranks."""
    made: dict[str, Tensor] = {}
    values: dict[str, Any] = _Unpickler(io.BytesIO(Path(path, STRUCTURE).read_bytes()), made).load()
    _settle(values, _homes(values, made, split))
    with together():
        load(_held(values, {id(value): key for key, value in made.items()}), storage_reader=reader(path))
    return values


def whole(path: str) -> dict[str, Any]:
    """The values that were written, all of them in this process."""
    made: dict[str, Tensor] = {}
    values: dict[str, Any] = _Unpickler(io.BytesIO(Path(path, STRUCTURE).read_bytes()), made).load()
    _settle(values, {id(value): (value, None) for value in made.values()})
    load(_held(values, {id(value): key for key, value in made.items()}), storage_reader=reader(path), no_dist=True)
    return values


def fill(values: Values, path: str, *, alone: bool = False) -> None:
    """Reads into tensors that are there, in place. Raises OptionError where a tensor is not in the checkpoint."""
    names = _names(values)
    known = reader(path).read_metadata().state_dict_metadata
    for value in _tensors(values):
        size = getattr(known.get(names[id(value)]), "size", None)
        if size is None or tuple(size) != tuple(value.shape):
            what = "is not there" if size is None else f"has the shape {tuple(size)} there and {tuple(value.shape)} here"
            raise OptionError(f"{path} is a checkpoint of something else: {names[id(value)]} {what}.")
    with together():
        load(_held(values, names), storage_reader=reader(path), no_dist=alone)


def _names(values: Values) -> dict[int, str]:
    """A name for each tensor, by its id: as in `state_dict`; an optimiser's state by its parameter's name."""
    names: dict[int, str] = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            names.setdefault(id(value), name)

    for key, value in values.items():
        start = f"{key}." if key else ""
        if isinstance(value, nn.Module):
            for name, tensor in (*value.named_parameters(), *value.named_buffers()):
                note(start + name, tensor)
    for key, value in values.items():
        start = f"{key}." if key else ""
        for optimiser in (thing for thing in reach({"value": value}, follow=False) if isinstance(thing, Optimizer)):
            for number, (parameter, state) in enumerate(optimiser.state.items()):
                for name, thing in state.items():
                    note(f"{start}state.{names.get(id(parameter), number)}.{name}", thing)
    for number, thing in enumerate(_tensors(values)):
        note(f"tensor.{number}", thing)
    return names


def _tensors(values: Values) -> list[Tensor]:
    found = [thing for thing in reach(dict(values), follow=False) if isinstance(thing, Tensor)]
    gradients = {id(grad) for thing in found if (grad := gradient_of(thing)) is not None}
    return [thing for thing in found if id(thing) not in gradients]


def _held(values: Values, names: Mapping[int, str]) -> dict[str, Tensor]:
    return {names[id(value)]: value.detach() for value in _tensors(values) if id(value) in names and not value.is_meta}


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, names: Mapping[int, str]) -> None:
        super().__init__(file, protocol=5)
        self._names_ = names

    def persistent_id(self, o: Any) -> Any:
        if not isinstance(o, Tensor) or id(o) not in self._names_:
            return None
        facts = tuple(o.shape), o.stride(), o.dtype, o.requires_grad, isinstance(o, nn.Parameter)
        return self._names_[id(o)], *facts


class _Unpickler(pickle.Unpickler):
    """Tensors are made on meta, each once."""

    def __init__(self, file: io.BytesIO, made: dict[str, Tensor]) -> None:
        super().__init__(file)
        self.made = made

    def persistent_load(self, hole: Any) -> Tensor:
        name, shape, stride, dtype, flag, parameter = hole
        if name not in self.made:
            value = empty(shape, stride, dtype)
            self.made[name] = nn.Parameter(value, flag) if parameter else value.requires_grad_(flag)
        return self.made[name]


def _homes(values: Values, made: Mapping[str, Tensor], split: bool) -> dict[int, tuple[Tensor, int | None]]:
    """The rank of each tensor, by its id; None for all ranks."""
    homes: dict[int, tuple[Tensor, int | None]] = {id(value): (value, None) for value in made.values()}
    size = dist.get_world_size()
    if not split or size == 1:
        return homes
    layers = chain(roots([(key or "model", value) for key, value in values.items() if isinstance(value, nn.Module)]))
    for layer, rank in zip(layers, divide(layers, sizes(layers), size, {}), strict=True):
        for value in layer.tensors():
            if homes[id(value)][1] is None:
                homes[id(value)] = value, rank
    for optimiser in (thing for thing in reach(dict(values), follow=False) if isinstance(thing, Optimizer)):
        for parameter, state in optimiser.state.items():
            for value in _with_dimensions(state.values()):
                homes[id(value)] = value, homes[id(parameter)][1]
    return homes


def _with_dimensions(values: Any) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor) and value.dim())


def _settle(values: Values, homes: Mapping[int, tuple[Tensor, int | None]]) -> None:
    """Makes the tensors real where they live."""
    with weak_lists_off(thing for thing in reach(dict(values), follow=False) if isinstance(thing, nn.Module)):
        for value, rank in homes.values():
            if rank is None or rank == dist.get_rank():
                real = empty(value.shape, value.stride(), value.dtype, "cpu")
                flag = value.requires_grad
                swap_tensors(value, nn.Parameter(real, flag) if isinstance(value, nn.Parameter) else real.requires_grad_(flag))
            if rank is not None:
                give(value, rank)
                if isinstance(value, nn.Parameter):
                    pin(value)
