"""Which calls are split: outermost ones, where the check has found a plan and splitting is quicker."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._pytree import tree_flatten

from nbpar.parallel.data import context
from nbpar.parallel.data.check import check, refused_before, still
from nbpar.parallel.data.gradients import Gradients
from nbpar.parallel.data.lazy import Lazy, Rows
from nbpar.parallel.data.once import Done, Once, Setting
from nbpar.parallel.data.pace import Pace
from nbpar.parallel.data.plan import Knowledge, Plan, Refusal, kind, sizes
from nbpar.parallel.data.subject import Subject
from nbpar.parallel.report import Report

MOST_SUBJECTS = 64
MOST_SETTLED = 256
MOST_WAYS = 4  # that calls of one kind take by what they ask of all rows
MOST_OTHERS = 64  # by what they run

# What is known about modules and functions outlives a cell: on the ranks they stay the same objects.
known: WeakKeyDictionary[Any, Knowledge] = WeakKeyDictionary()


@dataclass
class Splitter:
    """Runs outermost calls on this rank's rows, or whole where that would change the result."""

    gradients: Gradients
    report: Report
    lazy: Lazy
    batch_dim: int | None = None
    local_batchnorm: bool = False
    serial: int = field(default_factory=itertools.count(1).__next__)
    process: int = field(default_factory=os.getpid)
    thread: int = field(default_factory=threading.get_ident)
    checks: int = 0
    check_seconds: float = 0.0
    check_forwards: float = 0.0  # rows that checks put through calls, in units of the batches that they were of
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    settled: dict[tuple[int, Any], Any] = field(default_factory=dict)  # calls that run whole, at a glance; it keeps their subjects
    paces: set[Pace] = field(default_factory=set)
    subjects: dict[int, Subject] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.setting = Setting(self.gradients, self.lazy, self.local_batchnorm, self.checking)

    def module(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`nn.Module.__call__` that splits outermost calls."""

        def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if context.busy:
                return original(module, *args, **kwargs)
            subject = self.settled.get((id(module), outward(args, kwargs)))
            if subject is not None:
                return self.run_whole(subject, args, kwargs)
            if self.elsewhere() or in_transform() or next(module.parameters(), None) is None:
                return original(module, *args, **kwargs)
            return self.split(self.subject(module, original), self.batch_dim, args, kwargs)

        return call

    def subject(self, module: nn.Module, original: Callable[..., Any]) -> Subject:
        """Kept, but not for many modules: a cell may make thousands."""
        subject = self.subjects.get(id(module))
        if subject is None:
            if len(self.subjects) >= MOST_SUBJECTS:
                self.subjects.pop(next(iter(self.subjects)))
            subject = self.subjects[id(module)] = Subject(module, lambda *a, **k: original(module, *a, **k), module)
        return subject

    def function(self, wrapper: Any, batch_dim: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a function marked with `nbpar.split`."""
        function = wrapper.__wrapped__
        if context.busy or self.elsewhere() or in_transform():
            return function(*args, **kwargs)
        dim = self.batch_dim if batch_dim is None else batch_dim
        return self.split(Subject(wrapper, function, None), dim, args, kwargs)

    def elsewhere(self) -> bool:
        """In a worker of a DataLoader or a thread of the program's own, where the other ranks are not in step."""
        return os.getpid() != self.process or threading.get_ident() != self.thread

    def split(self, subject: Subject, batch_dim: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        knowledge = known.setdefault(subject.key, Knowledge())
        knowledge.begin(self.serial)
        ranks = self.gradients.ranks
        key = (ranks.kind, kind(flat, subject.training, ranks.size, batch_dim))
        plan = refused_before(subject) or knowledge.plan(key, sizes(flat))
        if plan is None:
            plan = knowledge.learn(key, self.check(subject, flat, spec, batch_dim))
        if isinstance(plan, Refusal):
            return self.whole(subject, plan, args, kwargs)
        pace = knowledge.paces.setdefault((key, volume(flat)), Pace())
        self.paces.add(pace)
        if pace.way(ranks) == "whole":
            if not pace.chosen:
                return self.run_whole(subject, args, kwargs)
            if len(self.settled) < MOST_SETTLED:
                self.settled[id(subject.key), outward(args, kwargs)] = subject
            return self.whole(subject, Refusal(pace.reason), args, kwargs)
        look = self.look(plan)
        if look and plan.counted:
            plan.compared.clear()
        elif look and not self.still(subject, flat, spec, plan):
            plan = knowledge.learn(key, self.check(subject, flat, spec, batch_dim))
            if isinstance(plan, Refusal):
                return self.whole(subject, plan, args, kwargs)
        self.gradients.active = True
        for _ in range(MOST_WAYS):
            once = Once(self.setting, subject, plan, flat, spec)
            if not (plan.holds(once.call.share.rows) or self.local_batchnorm):
                return self.compared(once, knowledge, key, batch_dim, args, kwargs)
            began = time.perf_counter()
            outcome = once.run()
            pace.shortest = min(pace.shortest, time.perf_counter() - began)
            if not (once.strayed or once.new):
                break
            other = (self.other_way if once.strayed else self.other_branch)(once, knowledge, key, batch_dim)
            if isinstance(other, Refusal):
                return self.whole(subject, other, args, kwargs)
            plan = other
        if isinstance(outcome, Done):
            self.count(subject, "split")
            details = self.report.details
            details["rows"] = max(details.get("rows", 0), flat[plan.base].shape[plan.dim])
            return outcome.value
        knowledge.surprise(key)
        return self.whole(subject, outcome, args, kwargs)

    def compared(  # noqa: PLR0917
        self, once: Once, knowledge: Knowledge, key: Any, batch_dim: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The whole call, and what its rows give beside it."""
        value, refusal = once.compared(lambda: self.run_whole(once.subject, args, kwargs, "compared"))
        self.disturb()
        if once.strayed:
            self.other_way(once, knowledge, key, batch_dim)
            return value
        if once.new and not refusal:
            found = self.other_branch(once, knowledge, key, batch_dim, every=True)
            refusal = found if isinstance(found, Refusal) else None
        if refusal:
            knowledge.learn(key, refusal)
            self.say(once.subject, refusal)
        once.plan.compared.add(once.call.share.rows)
        return value

    def other_way(self, once: Once, knowledge: Knowledge, key: Any, batch_dim: int | None) -> Plan | Refusal:
        """From now on, a plan for what this batch answers."""
        found: Plan | Refusal | None = knowledge.other_way(key, once.strayed)
        if found is None and sum(kind == key for kind, _ in knowledge.ways) >= MOST_WAYS:
            found = Refusal("it takes many ways, by what its tensors say (`if tensor`)")
        return knowledge.take(key, found or self.check(once.subject, once.flat, once.spec, batch_dim, once.strayed))

    def other_branch(
        self, once: Once, knowledge: Knowledge, key: Any, batch_dim: int | None, *, every: bool = False
    ) -> Plan | Refusal:
        """The program has gone another way: the call is checked as if it was the first, and both ways are known then.

        every: at all rows, as it may go this way only with so many.
        """
        before, answers = once.plan, once.call.answers
        found = self.check(once.subject, once.flat, once.spec, batch_dim, answers.found if answers else (), every)
        if isinstance(found, Plan):
            found.ways |= {*before.ways, once.way} - {None}
            if not found.like(before):
                found = Refusal("it gives its rows now in one way, now in another")
            elif len(found.ways) > MOST_OTHERS:
                found = Refusal("it goes another way in most calls")
        return knowledge.learn(key, found)

    def look(self, plan: Plan) -> bool:
        """Whether it is time to look again: at calls 2, 4, 8, … and at the first call in each cell."""
        plan.calls += 1
        due = not plan.fresh or (plan.calls > 1 and plan.calls & (plan.calls - 1) == 0)
        plan.fresh = True
        return due

    def whole(self, subject: Subject, refusal: Refusal, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The whole call on every rank, and the reason."""
        self.say(subject, refusal)
        return self.run_whole(subject, args, kwargs)

    def say(self, subject: Subject, refusal: Refusal) -> None:
        remedy = f". {refusal.remedy}" if refusal.remedy else ""
        self.report.say(f"{subject.name} runs whole on every rank: {refusal.reason}{remedy}.")

    def run_whole(self, subject: Subject, args: tuple[Any, ...], kwargs: dict[str, Any], way: str = "whole") -> Any:
        self.count(subject, way)
        context.busy += 1
        try:
            return subject.run(*args, **kwargs)
        finally:
            context.busy -= 1

    def disturb(self) -> None:
        """What is measured now holds other work than calls."""
        for pace in self.paces:
            pace.disturb()

    def count(self, subject: Subject, what: str) -> None:
        counts = self.counts.get(subject.name)
        if counts is None:
            counts = self.counts[subject.name] = Counter()
        counts[what] += 1

    def check(  # noqa: PLR0917
        self,
        subject: Subject,
        flat: Sequence[Any],
        spec: Any,
        batch_dim: int | None,
        answers: tuple[bool, ...] = (),
        every: bool = False,
    ) -> Plan | Refusal:
        subject.refresh()
        self.checks += 1
        with self.checking(subject, flat):
            return check(subject, flat, spec, batch_dim, self.gradients, answers, every)

    def still(self, subject: Subject, flat: Sequence[Any], spec: Any, plan: Plan) -> bool:
        with self.checking(subject, flat):
            return still(subject, flat, spec, plan, self.gradients)

    @contextmanager
    def checking(self, subject: Subject, flat: Sequence[Any]) -> Iterator[None]:
        began = time.perf_counter()
        for value in flat:
            if isinstance(value, Rows):
                value.settle()
        try:
            with uncollected(), _unsafe_preserve_version_counter(subject.held()):
                yield  # all is put back: a graph that was made before may use what it saved
        finally:
            self.check_seconds += time.perf_counter() - began
            self.check_forwards, subject.tried = self.check_forwards + subject.tried, 0.0
            self.disturb()


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles of objects meanwhile: notes of operators are many and in none, and each search visits all of torch's."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def outward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call looks like at a glance."""
    return tuple(arg.shape if isinstance(arg, Tensor) else type(arg) for arg in (*args, *kwargs.values()))


def volume(flat: Sequence[Any]) -> int:
    """The order of magnitude of the arguments."""
    return sum(value.numel() for value in flat if isinstance(value, Tensor)).bit_length()


def in_transform() -> bool:
    """Inside torch.func, tracing or compiling, calls are not ours."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined]
