"""A forward pass as `%%parallel model` runs it over stages, from what one process did: where each operation runs, which values
travel, and what each stage keeps for the backward pass.

An operation runs where its operands live (nbpar/parallel/model/dispatch.py), the call of a module with one home there as a whole
(units.py). A value that another stage needs is copied to it, once; what is saved of the copy is saved there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Value:
    """A tensor. memory: which storage it is in, that views of it share; bytes: its own; graph: whether it has a gradient."""

    key: int
    memory: int
    bytes: int
    graph: bool


@dataclass(frozen=True)
class Operation:
    """One call of a torch function.

    within: the layers of each module that is being called and has parameters, outermost first.
    keeps: memories that are saved for the backward pass.
    first: whether it runs where its first operand is, whatever the others; changes: whether that is changed in place.
    """

    within: tuple[tuple[int, ...], ...]
    takes: tuple[Value, ...]
    gives: tuple[Value, ...]
    keeps: tuple[int, ...] = ()
    first: bool = False
    changes: bool = False


@dataclass(frozen=True)
class Forward:
    """operations: in their order. sizes: bytes of each memory that is kept. tensors: the layers of each parameter and buffer, by
    memory. given: memories of the model's arguments.
    """

    operations: tuple[Operation, ...] = ()
    sizes: dict[int, int] = field(default_factory=dict)
    tensors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    given: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Stages:
    """Bytes by stage: kept for the backward pass, of the model's arguments among it, sent to other stages in the forward pass and
    in the backward pass.
    """

    kept: Counter[int]
    given: Counter[int]
    forward: Counter[int]
    backward: Counter[int]


Memory = int | tuple[int, int]  # a storage of the one process, or (value, stage): a copy


def over(forward: Forward, owners: Sequence[int]) -> Stages:
    """owners: the stage of each layer."""
    simulation = _Simulation(forward, owners)
    for operation in forward.operations:
        simulation.run(operation)
    return simulation.stages


class _Simulation:
    def __init__(self, forward: Forward, owners: Sequence[int]) -> None:
        self.owners, self.sizes = owners, forward.sizes
        self.homes: dict[Memory, int] = {memory: owners[layers[0]] for memory, layers in forward.tensors.items()}
        self.pinned = {memory for memory, layers in forward.tensors.items() if len({owners[k] for k in layers}) == 1}
        self.places: dict[int, tuple[int | None, Memory]] = {}  # of computed values: the stage, None for every stage
        self.copies: dict[Memory, Value] = {}
        self.given = forward.given
        self.kept: set[tuple[int, Memory]] = {(stage, memory) for memory in forward.tensors for stage in owners}  # there anyway
        self.stages = Stages(Counter(), Counter(), Counter(), Counter())

    def run(self, operation: Operation) -> None:
        stage = self.stage(operation)
        here = {value.memory: self.bring(value, stage) for value in operation.takes}
        for value in operation.gives:
            self.places[value.key] = stage, here.get(value.memory, value.memory)
        for memory in operation.keeps:
            self.keep(here.get(memory, memory), memory, stage)
        if operation.changes:
            changed = operation.takes[0].memory
            self.copies = {copy: value for copy, value in self.copies.items() if value.memory != changed}

    def stage(self, operation: Operation) -> int | None:
        for layers in operation.within:
            if len(homes := {self.owners[k] for k in layers}) == 1:
                return homes.pop()
        operands = [self.place(value) for value in (operation.takes[:1] if operation.first else operation.takes)]
        there = [stage for stage, _ in operands if stage is not None]
        fixed = [stage for stage, memory in operands if stage is not None and memory in self.pinned]
        return max(fixed or there, default=None)

    def place(self, value: Value) -> tuple[int | None, Memory]:
        return self.places.get(value.key) or (self.homes.get(value.memory), value.memory)

    def bring(self, value: Value, stage: int | None) -> Memory:
        """The value's memory on the stage."""
        source, memory = self.place(value)
        if stage is None or source is None or source == stage:
            return memory
        copy = value.key, stage
        if copy not in self.copies:
            self.copies[copy] = value
            self.stages.forward[source] += value.bytes
            self.stages.backward[stage] += value.bytes if value.graph else 0
        return copy

    def keep(self, memory: Memory, original: int, stage: int | None) -> None:
        size = self.copies[memory].bytes if memory in self.copies else self.sizes.get(original, 0)
        for each in set(self.owners) if stage is None else (stage,):
            if (each, memory) not in self.kept:
                self.kept.add((each, memory))
                (self.stages.given if memory in self.given else self.stages.kept)[each] += size
