"""A split call from start to end."""

from __future__ import annotations

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
from torch.utils._pytree import tree_flatten, tree_unflatten

from nbpar.parallel.data import context, norm, state
from nbpar.parallel.data.attempt import Local, attempt
from nbpar.parallel.data.border import leave
from nbpar.parallel.data.check import check, loose, refused_before, still
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.draws import Streams, Unlike, Whole, moved
from nbpar.parallel.data.gradients import Gradients
from nbpar.parallel.data.layouts import How, Layout, Share, same
from nbpar.parallel.data.lazy import Lazy, Rows
from nbpar.parallel.data.pace import Pace
from nbpar.parallel.data.plan import Knowledge, Plan, Refusal, kind
from nbpar.parallel.data.structure import flatten, unflatten
from nbpar.parallel.data.subject import Subject
from nbpar.parallel.report import Report

MOST_SURPRISES = 3

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
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    settled: WeakKeyDictionary[Any, set[Any]] = field(default_factory=WeakKeyDictionary)
    paces: set[Pace] = field(default_factory=set)
    subjects: WeakKeyDictionary[Any, Subject] = field(default_factory=WeakKeyDictionary)

    def module(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`nn.Module.__call__` that splits outermost calls."""

        def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if context.busy or self.elsewhere() or in_transform() or next(module.parameters(), None) is None:
                return original(module, *args, **kwargs)
            subject = self.subjects.get(module)
            if subject is None:
                subject = self.subjects[module] = Subject(module, lambda *a, **k: original(module, *a, **k), module)
            return self.split(subject, self.batch_dim, args, kwargs)

        return call

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
        rough = outward(args, kwargs)
        if rough in self.settled.get(subject.key, ()):
            return self.run_whole(subject, args, kwargs)
        flat, spec = tree_flatten((args, kwargs))
        knowledge = known.setdefault(subject.key, Knowledge())
        knowledge.begin(self.serial)
        ranks = self.gradients.ranks
        key = (ranks.size, kind(flat, subject.training, ranks.size, batch_dim))
        plan = refused_before(subject) or knowledge.plans.get(key)
        if plan is None:
            plan = knowledge.plans[key] = self.check(subject, flat, spec, batch_dim)
        if isinstance(plan, Refusal):
            return self.whole(subject, plan, args, kwargs)
        pace = knowledge.paces.setdefault((key, volume(flat)), Pace())
        self.paces.add(pace)
        if pace.way(ranks) == "whole":
            if not pace.chosen:
                return self.run_whole(subject, args, kwargs)
            self.settled.setdefault(subject.key, set()).add(rough)
            return self.whole(subject, Refusal(pace.reason), args, kwargs)
        outcome = self.run_split(subject, knowledge, key, plan, pace, flat, spec, batch_dim)
        if isinstance(outcome, Refusal):
            return self.whole(subject, outcome, args, kwargs)
        self.count(subject, "split")
        return outcome.value

    def run_split(  # noqa: PLR0917
        self, subject: Subject, knowledge: Knowledge, key: Any, plan: Plan, pace: Pace,
        flat: Sequence[Any], spec: Any, batch_dim: int | None,
    ) -> Done | Refusal:  # fmt: skip
        """The call on this rank's rows, checked again at calls 2, 4, 8, … and in each cell"""
        plan.calls += 1
        look = not plan.fresh or (plan.calls > 1 and plan.calls & (plan.calls - 1) == 0)
        plan.fresh = True
        if look and not self.still(subject, flat, spec, plan):
            again = knowledge.plans[key] = self.check(subject, flat, spec, batch_dim)
            if isinstance(again, Refusal):
                return again
            plan = again
        began, verified = time.perf_counter(), plan.verified
        outcome = self.run(subject, plan, flat, spec)
        pace.longest = max(pace.longest, time.perf_counter() - began)
        if not verified:
            self.disturb()
        if isinstance(outcome, Refusal):
            surprises = knowledge.surprises[key] = knowledge.surprises.get(key, 0) + 1
            if not verified or surprises >= MOST_SURPRISES:
                knowledge.plans[key] = outcome
            else:
                del knowledge.plans[key]
        return outcome

    def whole(self, subject: Subject, refusal: Refusal, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The whole call on every rank, and the reason."""
        remedy = f". {refusal.remedy}" if refusal.remedy else ""
        self.report.say(f"{subject.name} runs whole on every rank: {refusal.reason}{remedy}.")
        return self.run_whole(subject, args, kwargs)

    def run_whole(self, subject: Subject, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.count(subject, "whole")
        with context.inside(None):
            return subject.run(*args, **kwargs)

    def disturb(self) -> None:
        """What is measured now holds other work than calls."""
        for pace in self.paces:
            pace.disturb()

    def count(self, subject: Subject, what: str) -> None:
        self.counts.setdefault(subject.name, Counter())[what] += 1

    def check(self, subject: Subject, flat: Sequence[Any], spec: Any, batch_dim: int | None) -> Plan | Refusal:
        subject.refresh()
        self.checks += 1
        with self.checking(flat):
            return check(subject, flat, spec, batch_dim, self.gradients)

    def still(self, subject: Subject, flat: Sequence[Any], spec: Any, plan: Plan) -> bool:
        with self.checking(flat):
            return still(subject, flat, spec, plan, self.gradients)

    @contextmanager
    def checking(self, flat: Sequence[Any]) -> Iterator[None]:
        began = time.perf_counter()
        for value in flat:
            if isinstance(value, Rows):
                value.settle()
        try:
            yield
        finally:
            self.check_seconds += time.perf_counter() - began
            self.disturb()

    def run(self, subject: Subject, plan: Plan, flat: Sequence[Any], spec: Any) -> Done | Refusal:
        """The outputs of a split call; or why there are none, everything put back."""
        ranks = self.gradients.ranks
        rows = flat[plan.base].shape[plan.dim]
        if rows < ranks.size:
            return Refusal(f"a batch of {rows} has fewer rows than there are ranks ({ranks.size})")
        call = Call(Share(ranks.sizes(rows), ranks.rank), ranks, self.gradients)
        call.reads_allowed, call.local_batchnorm = plan.reads, self.local_batchnorm
        kept = state.State(subject.modules) if not plan.verified or plan.state else None
        streams = Streams.now() if not plan.verified or plan.python_draws else None
        torch_stream = torch.get_rng_state()
        weights = [weight.detach().clone() for weight in subject.parameters] if plan.writes else []
        expected = None if plan.verified or self.local_batchnorm else self.reference(subject, flat, spec, kept, streams)
        watch = Whole(call, plan.draw_names, plan.draw_layouts) if plan.draw_names else None

        def put_back() -> None:
            if kept:
                kept.put_back()
            if streams:
                streams.put_back()
            torch.set_rng_state(torch_stream)
            for weight, value in zip(subject.parameters, weights, strict=False):
                weight.data.copy_(value)

        def accept(local: Local) -> Sequence[Any]:
            if not plan.draw_names and moved(torch_stream):
                raise Unlike("it draws random numbers that its first call did not draw")
            if local.spec != plan.spec:
                raise Unlike("its result has another structure than that of its first call")
            return [outline(value, how, call.share) for value, how in zip(local.values, plan.outputs, strict=True)]

        local = attempt(subject, subject.run, flat, spec, plan.cuts, call, watch, accept)
        if isinstance(local, str):
            put_back()
            return Refusal(local)
        norm.even_out(call)
        out = self.leave if expected is None else leave
        outputs = [value if how is None else out(value, how, call) for value, how in zip(local.values, plan.outputs, strict=True)]
        for place, how in plan.state.items():
            if how != "same":
                value = state.get(subject.modules, place)
                if value is not None:
                    state.put(subject.modules, place, leave(value, how, call))
        if expected is not None:
            left = [state.get(subject.modules, place) for place in plan.state]
            fine = all(
                not isinstance(a, Tensor) or (isinstance(b, Tensor) and same(a, b, loose()))
                for a, b in zip([*outputs, *left], [*expected[0], *(expected[1].get(p) for p in plan.state)], strict=True)
            )
            if not all(ranks.objects(fine)):
                put_back()
                return Refusal("rows mix: the whole batch gives another result than its rows")
        plan.verified = True
        return Done(unflatten(outputs, plan.spec))

    def leave(self, local: Tensor, how: How, call: Call) -> Tensor:
        return self.lazy.leave(local, how, call) if isinstance(how, Layout) else leave(local, how, call)

    def reference(self, subject: Subject, flat: Sequence[Any], spec: Any, kept: Any, streams: Any) -> Any:
        """Outputs and state of one whole call, without a trace of it."""
        args, kwargs = tree_unflatten([value.detach().clone() if isinstance(value, Tensor) else value for value in flat], spec)
        try:
            with self.checking(flat), torch.no_grad(), context.inside(None), subject.untouched():
                outputs, _ = flatten(subject.run(*args, **kwargs))
            changes = {place: value.detach().clone() for place, value in kept.changes().items()}
            return outputs, changes
        except Exception:
            return None  # the call itself will say it
        finally:
            kept.put_back()
            streams.put_back()
            torch.clear_autocast_cache()


def outward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call looks like at a glance."""
    return tuple(arg.shape if isinstance(arg, Tensor) else type(arg) for arg in (*args, *kwargs.values()))


def volume(flat: Sequence[Any]) -> int:
    """The order of magnitude of the arguments."""
    return sum(value.numel() for value in flat if isinstance(value, Tensor)).bit_length()


@dataclass
class Done:
    value: Any


def outline(value: Any, how: Any, share: Share) -> Any:
    """What must be alike on all ranks of an output: its shape but for the rows. Raises Unlike."""
    if not isinstance(value, Tensor):
        if how is not None:
            raise Unlike("its result is no tensor where it was one in its first call")
        return value
    if how is None or (isinstance(how, Layout) and not how.fits(value, share)):
        raise Unlike("its result has another shape than that of its first call")
    shape = list(value.shape)
    if isinstance(how, Layout):
        shape[how.dim] //= share.count
    return shape, value.dtype, value.requires_grad


def in_transform() -> bool:
    """Inside torch.func, tracing or compiling, calls are not ours."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined]
