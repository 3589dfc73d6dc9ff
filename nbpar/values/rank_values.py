"""One value per rank, for what a cell left different on each: seen as a whole in the notebook, its own again on every rank."""

from __future__ import annotations

import functools
import operator
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from nbpar.errors import CannotTravel
from nbpar.values import kinds
from nbpar.values.choice import CHOICES
from nbpar.values.opaque import Frozen, Thawer, summary
from nbpar.values.pickling import GroupPickler
from nbpar.values.refs import Absent
from nbpar.values.table import Port

Key = tuple[Any, ...]  # ("name", variable) or ("slot", number of the container, position)


class RankGroup:
    """All that one cell left different: a pickle per rank, so that what belongs together on a rank stays together.

    id: unique; size: ranks of the world; frozen: by rank, the pickle of a dict by key.
    """

    def __init__(self, id: str, size: int, frozen: Mapping[int, Frozen], port: Port | None = None) -> None:
        self.id, self.size, self.frozen = id, size, dict(frozen)
        self._port = port or Port({})
        self._read: dict[int, dict[Key, Any]] = {}

    def of(self, rank: int) -> dict[Key, Any]:
        if rank not in self._read:
            self._read[rank] = Thawer(self._port, self.frozen[rank]).load()
        return self._read[rank]

    def renewed(self) -> bool:
        """Whether the notebook has changed a value that it looked at; `frozen` is then up to date again."""
        changed = False
        for rank, values in self._read.items():
            old = self.frozen[rank]
            new = GroupPickler(self._port, {id(part) for part in old[1]}).frozen(values)
            if summary(new) != summary(old):
                blob, parts, buffers = new
                self.frozen[rank], changed = (blob, parts, tuple(map(bytes, buffers))), True
        return changed

    def __reduce__(self) -> tuple[Any, ...]:
        self.renewed()
        frozen = {rank: (blob, parts, tuple(map(bytes, buffers))) for rank, (blob, parts, buffers) in self.frozen.items()}
        return RankGroup, (self.id, self.size, frozen)


class RankValues:
    """`v[rank]` is that rank's value; `len(v)` ranks; iteration in their order; `.mean()`, `.sum()`, `.cat()` over them.

    A later parallel cell that reads the variable has on each rank that rank's own value.
    """

    def __init__(self, name: str, key: Key, group: RankGroup) -> None:
        self._name, self._key, self._group = name, key, group

    @property
    def size(self) -> int:
        """How many ranks the world had."""
        return self._group.size

    @property
    def ranks(self) -> list[int]:
        """The ranks that have a value."""
        return [rank for rank in sorted(self._group.frozen) if self._key in self._group.of(rank)]

    def __getitem__(self, rank: int) -> Any:
        if rank not in self._group.frozen or self._key not in self._group.of(rank):
            raise IndexError(f"{self._name} has no value for rank {rank!r}; it has one for each of {self.ranks}")
        return self._group.of(rank)[self._key]

    def __len__(self) -> int:
        return len(self.ranks)

    def __iter__(self) -> Iterator[Any]:
        return (self[rank] for rank in self.ranks)

    def sum(self) -> Any:
        """v[0] + v[1] + …, for values that can be added: shapes are those of one rank's. Raises what adding raises."""
        return functools.reduce(operator.add, self)

    def mean(self) -> Any:
        """The sum divided by the number of ranks, as a whole: for batches of unequal size weigh the ranks yourself."""
        return self.sum() / len(self)

    def cat(self) -> Any:
        """The ranks' tensors, arrays, frames, lists or strings one after the other (dimension 0); numbers and scalars as a row.

        Tensors of shapes (a, …) and (b, …) give (a + b, …). Raises what torch, numpy or pandas raise if the shapes do not fit.
        """
        values = list(self)
        kind = type(values[0]).__module__.partition(".")[0]
        if kind == "torch":
            import torch

            return torch.stack(values) if values[0].dim() == 0 else torch.cat(values)
        if kind == "numpy":
            import numpy

            return numpy.stack(values) if numpy.ndim(values[0]) == 0 else numpy.concatenate(values)
        if kind == "pandas":
            import pandas

            return pandas.concat(values)
        return values if isinstance(values[0], int | float | complex) else self.sum()

    def __repr__(self) -> str:
        shown = [f"{rank}: {brief(self[rank])}" for rank in self.ranks]
        line = f"RankValues({', '.join(shown)})"
        return line if len(line) < 100 else "RankValues(\n" + "".join(f"  {each}\n" for each in shown) + ")"

    def __reduce__(self) -> tuple[Any, ...]:
        return RankValues, (self._name, self._key, self._group)


def brief(value: Any) -> str:
    """One short line about a value."""
    if isinstance(value, Absent):
        return repr(value)
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype") and functools.reduce(operator.mul, shape, 1) > 6:
        return f"{type(value).__name__}{list(shape)} {str(value.dtype).removeprefix('torch.')}"
    return " ".join(reprlib.repr(value).split())


class GroupKind(kinds.Fixed):
    changes = True

    def diff(self, o: RankGroup, old: Any, port: Any = None) -> Any:
        return kinds.REPLACE if o._read and o.renewed() else None

    def reduce(self, o: RankGroup, pickler: Any) -> Any:
        o.renewed()
        pickler.port.sends(o)
        parts = {rank: frozen[1] for rank, frozen in o.frozen.items()}
        pickler.temporary(parts, *parts.values())
        return own_group, (pickler.port, o.id, parts)


class ValuesKind(kinds.Fixed):
    def reduce(self, o: RankValues, pickler: Any) -> Any:
        pickler.temporary(o._key)
        return own_value, (pickler.port, o._group, o._name, o._key)


class OwnGroup(dict[Key, Any]):
    """On a rank: its own values of a group."""


def own_group(port: Any, id: str, parts: dict[int, tuple[Any, ...]]) -> OwnGroup:
    return port.own_group(id, parts)


def own_value(port: Any, group: OwnGroup, name: str, key: Key) -> Any:
    return port.own_value(group, name, key)


class OwnKind(kinds.Kind):
    """On a rank: its own value, which the notebook has among its RankValues. Changed, it is sent as a new object."""

    def __init__(self) -> None:
        self.parts: tuple[Any, ...] = ()

    def snap(self, o: Any, port: Any = None) -> Any:
        frozen = port.freeze_own(o)
        self.parts = frozen[1]
        return summary(frozen)

    def diff(self, o: Any, old: Any, port: Any = None) -> Any:
        return None if self.snap(o, port) == old else kinds.REPLACE

    def children(self, o: Any) -> Any:
        return self.parts


def check_size(name: str, values: RankValues, size: int) -> None:
    """Raises CannotTravel if the values are of a world of another size."""
    if values.size != size:
        raise CannotTravel(
            f"{name} holds one value for each of {values.size} ranks, and this world has {size}. "
            f"Pick one, e.g. {name} = {name}[{min(values._group.frozen)}], or combine them, e.g. {name} = {name}.cat()."
        )


CHOICES[RankGroup] = GroupKind(lambda o: [part for frozen in o.frozen.values() for part in frozen[1]])
CHOICES[RankValues] = ValuesKind(lambda o: (o._group,))
CHOICES[OwnGroup] = kinds.FIXED
