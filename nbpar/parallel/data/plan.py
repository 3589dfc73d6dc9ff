"""What is known about a kind of call, and what kind a call is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data.layouts import How, Layout
from nbpar.parallel.data.pace import Pace
from nbpar.parallel.data.state import Place

MOST_CANDIDATES = 8
MOST_SURPRISES = 3
SAID = ("cuts", "outputs", "spec", "state", "draw_names", "draw_layouts", "python_draws", "reads", "writes")  # of a plan


@dataclass(frozen=True)
class Candidate:
    """Which arguments have rows. base: the argument (by place in the flattened call) and dimension that count them."""

    base: int
    rows: int
    cuts: tuple[tuple[int, Layout], ...]

    @property
    def dim(self) -> int:
        return dict(self.cuts)[self.base].dim


@dataclass(eq=False)
class Plan:
    """How calls of this kind are split.

    outputs: by place in the flattened result; None where it is no tensor. state: what is left on modules.
    reads: Python reads values that do not depend on rows. writes: the call writes to its weights.
    rows: how many were tried. counted: the sizes that it holds for, if it goes another way with all rows than with some: all were
    tried then, and later looks compare a whole call. answers: which way it took, by what it asked; ways: see `Local.way`.
    verified: operators show that rows are apart. compared: numbers of rows of which a whole batch has been compared.
    fresh: looked at in this cell.
    """

    base: int
    cuts: tuple[tuple[int, Layout], ...]
    outputs: tuple[How | None, ...]
    spec: Any
    state: dict[Place, How]
    draw_names: tuple[str, ...]
    draw_layouts: tuple[Layout | None, ...]
    python_draws: bool
    reads: bool
    writes: bool
    rows: int
    answers: tuple[bool, ...] = ()
    counted: tuple[int, ...] = ()
    ways: set[int | None] = field(default_factory=set)
    verified: bool = False
    compared: set[int] = field(default_factory=set)
    fresh: bool = True
    calls: int = 0

    @property
    def dim(self) -> int:
        return dict(self.cuts)[self.base].dim

    def holds(self, rows: int) -> bool:
        """Whether a batch of so many rows may be split."""
        return self.verified or rows in self.compared

    def like(self, other: Plan) -> bool:
        """Whether both say the same of where rows are."""
        return all(getattr(self, name) == getattr(other, name) for name in SAID)


@dataclass(frozen=True)
class Refusal:
    """Why calls of this kind run whole on every rank, and what a person can do."""

    reason: str
    remedy: str = ""


@dataclass
class Knowledge:
    """What is known about one subject; it lives as long as the module."""

    cell: int = 0
    plans: dict[Any, Plan | Refusal] = field(default_factory=dict)
    surprises: dict[Any, int] = field(default_factory=dict)
    paces: dict[Any, Pace] = field(default_factory=dict)
    ways: dict[Any, Plan] = field(default_factory=dict)  # by kind and answers
    counted: dict[Any, Plan] = field(default_factory=dict)  # by kind and sizes

    def plan(self, key: Any, sizes: tuple[int, ...]) -> Plan | Refusal | None:
        """For a call of this kind and these sizes."""
        plan = self.plans.get(key)
        if isinstance(plan, Plan) and plan.counted not in ((), sizes):
            return self.counted.get((key, sizes))
        return plan

    def learn(self, key: Any, plan: Plan | Refusal) -> Plan | Refusal:
        self.plans[key] = plan
        if isinstance(plan, Plan) and plan.counted:
            self.counted[key, plan.counted] = plan
        return plan

    def surprise(self, key: Any) -> None:
        """A split call did not go as planned. After a few times calls of this kind run whole."""
        self.surprises[key] = self.surprises.get(key, 0) + 1
        if self.surprises[key] < MOST_SURPRISES:
            self.plans.pop(key, None)
            self.counted = {known: plan for known, plan in self.counted.items() if known[0] != key}
        else:
            self.plans[key] = Refusal(f"{MOST_SURPRISES} times it did not do what its first call did")

    def other_way(self, key: Any, answers: tuple[bool, ...]) -> Plan | None:
        """A plan that was tried with these answers to what a call asks first."""
        found = (plan for (kind, given), plan in self.ways.items() if kind == key and given[: len(answers)] == answers)
        return next(found, None)

    def take(self, key: Any, plan: Plan | Refusal) -> Plan | Refusal:
        """From now on; the plan before stays known for its answers."""
        before = self.plans.get(key)
        if isinstance(before, Plan):
            self.ways[key, before.answers] = before
        return self.learn(key, plan)

    def begin(self, cell: int) -> None:
        """A cell's first call: the module may be another since, so plans are looked at again and refusals are forgotten."""
        if cell == self.cell:
            return
        self.cell = cell
        self.plans = {key: plan for key, plan in self.plans.items() if isinstance(plan, Plan)}
        self.ways.clear()
        for plan in (*self.plans.values(), *self.counted.values()):
            if isinstance(plan, Plan):
                plan.fresh = False


def kind(flat: Sequence[Any], training: bool, size: int, batch_dim: int | None) -> Any:
    """Calls of one kind share a plan: which dimensions equal the number of rows, not the shapes themselves."""
    counts = sizes(flat)
    parts: list[Any] = [training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), batch_dim]
    parts += [min(count // size, 2) for count in counts]
    for value in flat:
        if isinstance(value, Tensor):
            parts.append((value.dtype, value.device.type, tuple(tuple(n == count for count in counts) for n in value.shape)))
        else:
            parts.append(value if isinstance(value, bool | str | None) else type(value))
    return tuple(parts)


def sizes(flat: Sequence[Any]) -> tuple[int, ...]:
    """Of the first argument that has any: of these two, one is the number of rows."""
    first = next((value for value in flat if isinstance(value, Tensor) and value.dim()), None)
    return () if first is None else tuple(first.shape[:2])


def candidates(flat: Sequence[Any], size: int, batch_dim: int | None) -> Iterator[Candidate]:
    """Ways to cut the arguments, the likeliest first: by the first argument, dimension 0, then 1; then by others.

    Of each: all that share the length, then fewer. Later ones have so many rows that a glance leaves a third of them.
    """
    given: set[frozenset[tuple[int, Layout]]] = set()
    tensors = {at: value for at, value in enumerate(flat) if isinstance(value, Tensor) and value.dim()}
    for base, tensor in tensors.items():
        for dim in (0, 1) if batch_dim is None else (batch_dim,):
            if tensor.dim() <= dim or tensor.shape[dim] < (1.5 * (size + 1) if given else size):
                continue
            rows = tensor.shape[dim]
            order = (dim, *(other for other in (0, 1) if other != dim))
            for cuts in choices(tensors, base, dim, rows, order):
                if frozenset(cuts) not in given and len(given) < MOST_CANDIDATES:
                    given.add(frozenset(cuts))
                    yield Candidate(base, rows, cuts)


def choices(
    tensors: dict[int, Tensor], base: int, dim: int, rows: int, order: Sequence[int]
) -> Iterator[tuple[tuple[int, Layout], ...]]:
    """Cuts of all arguments with this many rows; without one of the others; of the base alone."""

    def cut(dims: Sequence[int], leave_out: int | None = None) -> tuple[tuple[int, Layout], ...]:
        found = []
        for at, tensor in tensors.items():
            if tensor is tensors[base]:
                found.append((at, Layout(dim)))
            elif at != leave_out:
                where = [d for d in dims if tensor.dim() > d and tensor.shape[d] == rows]
                found += [(at, Layout(where[0]))] if where else []
        return tuple(found)

    everything = cut(order)
    yield everything
    yield cut(order[:1])
    yield cut(())
    if len(everything) > 2:
        for at, _ in everything:
            if tensors[at] is not tensors[base]:
                yield cut(order, at)
