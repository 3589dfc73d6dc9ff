"""One call on this rank's rows: its outputs as one process would have made them, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data import norm, state
from nbpar.parallel.data.answers import Answers
from nbpar.parallel.data.attempt import Local, attempt
from nbpar.parallel.data.border import leave
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.draws import Streams, Unlike, Whole, moved
from nbpar.parallel.data.gradients import Gradients
from nbpar.parallel.data.layouts import How, Layout, Share, loose, same
from nbpar.parallel.data.lazy import Lazy
from nbpar.parallel.data.plan import Plan, Refusal
from nbpar.parallel.data.structure import flatten, unflatten
from nbpar.parallel.data.subject import Subject

OTHERWISE = "rows mix: the whole batch gives another result than its rows"


@dataclass(frozen=True)
class Setting:
    """What calls of one cell share. checking: a context whose time counts as that of checks."""

    gradients: Gradients
    lazy: Lazy
    local_batchnorm: bool
    checking: Callable[[Subject, Sequence[Any]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Done:
    value: Any


class Once:
    """A call that is about to run. Whatever it changes can be put back.

    strayed: what it answered on all ranks, up to where that is not what its plan knows; empty if it is. new: whether some rank
    went a way that its plan does not know; way: that of this rank. comparing: with the whole call, so that any way is right.
    """

    strayed: tuple[bool, ...] = ()
    new = comparing = False
    way: int | None = None

    def __init__(self, setting: Setting, subject: Subject, plan: Plan, flat: Sequence[Any], spec: Any) -> None:
        self.setting, self.subject, self.plan, self.flat, self.spec = setting, subject, plan, flat, spec
        ranks = setting.gradients.ranks
        share = Share(ranks.sizes(flat[plan.base].shape[plan.dim]), ranks.rank)
        self.call = Call(
            share, ranks, setting.gradients, reads_allowed=plan.reads, local_batchnorm=setting.local_batchnorm, plan=plan,
            answers=Answers(plan.answers) if ranks.all_here else None,
        )  # fmt: skip
        self.kept = state.State(subject.modules) if plan.state or not plan.holds(share.rows) else None
        self.attributes = state.Attributes(subject.modules) if self.kept is None else None
        self.streams = Streams.now()
        self.torch_stream = torch.get_rng_state()
        self.weights = [weight.detach().clone() for weight in subject.parameters] if plan.writes else []

    def run(self) -> Done | Refusal:
        """Collective. After a Refusal everything is as before."""
        if self.call.share.rows < self.call.ranks.size:
            return Refusal(f"a batch of {self.call.share.rows} has fewer rows than there are ranks ({self.call.ranks.size})")
        if min(self.call.share.sizes) < min(2, self.plan.rows // self.call.ranks.size):
            return Refusal("a rank would have a single row, which was not tried")
        local = self.attempt()
        if isinstance(local, str):
            self.put_back()
            return Refusal(local)
        if self.way is not None:
            self.plan.ways.add(self.way)
        norm.even_out(self.call)
        outputs = [v if how is None else self.leave(v, how) for v, how in zip(local.values, self.plan.outputs, strict=True)]
        self.leave_state()
        return Done(unflatten(outputs, self.plan.spec))

    def compared(self, whole: Callable[[], Any]) -> tuple[Any, Refusal | None]:
        """What the whole call gives; and why its rows, tried without a trace of it, did not give the same. Collective."""
        tried = self.tried()
        with nullcontext() if self.subject.compiled else self.call.ranks.watch() as way:
            value = whole()
        ways = {self.way, None if way is None else hash(tuple(way))} - {None}
        self.new = bool(self.plan.ways) and not ways <= self.plan.ways
        self.plan.ways |= ways
        if isinstance(tried, Refusal):
            return value, tried
        with self.setting.checking(self.subject, self.flat):
            left = self.kept.left().tensors if self.kept else {}
            wanted = [*flatten(value)[0], *(left.get(place) for place in self.plan.state)]
            fine = len(tried) == len(wanted) and all(map(alike, tried, wanted))
            every = self.call.ranks.objects((fine, self.new))
        self.new = any(new for _, new in every)
        return value, None if all(fine for fine, _ in every) else Refusal(OTHERWISE)

    def tried(self) -> list[Any] | Refusal:
        """Outputs and state of the call on this rank's rows, put together. Everything is as before."""
        with self.setting.checking(self.subject, self.flat), torch.no_grad(), self.subject.untouched():
            self.subject.tried += max(self.call.share.sizes) / self.call.share.rows
            self.comparing = True
            try:
                local = self.attempt()
                if isinstance(local, str):
                    return Refusal(local)
                left = [state.get(self.subject.modules, place) for place in self.plan.state]
                pairs = zip([*local.values, *left], [*self.plan.outputs, *self.plan.state.values()], strict=True)
                return [leave(v, how, self.call).clone() if how and v is not None else v for v, how in pairs]
            finally:
                self.put_back()
                torch.clear_autocast_cache()

    def attempt(self) -> Local | str:
        plan, subject = self.plan, self.subject
        watch = Whole(self.call, plan.draw_names, plan.draw_layouts) if plan.draw_names else None
        local = attempt(subject, subject.run, self.flat, self.spec, plan.cuts, self.call, watch, self.accept)
        answers = self.call.answers
        if isinstance(local, str):
            every = self.call.ranks.objects((answers.found if answers and answers.strayed else (), self.new))
            found = {strayed for strayed, _ in every}
            self.strayed, self.new = found.pop() if len(found) == 1 else (), any(new for _, new in every)
        return local

    def accept(self, local: Local) -> Sequence[Any]:
        """The local outputs are what the plan says. Raises Unlike."""
        if not self.plan.draw_names and moved(self.torch_stream):
            raise Unlike("it draws random numbers that its first call did not draw")
        if local.spec != self.plan.spec:
            raise Unlike("its result has another structure than that of its first call")
        self.way, ways = local.way, self.plan.ways
        self.new = self.way is not None and bool(ways) and self.way not in ways and not self.comparing
        if self.new:
            raise Unlike("it goes another way than it was tried")
        left = [state.get(self.subject.modules, place) for place in self.plan.state]
        outlines = [outline(value, how, self.call.share) for value, how in zip(local.values, self.plan.outputs, strict=True)]
        return [*outlines, self.call.ranks.homes(left)]

    def leave(self, local: Tensor, how: How) -> Tensor:
        return self.setting.lazy.leave(local, how, self.call) if isinstance(how, Layout) else leave(local, how, self.call)

    def leave_state(self) -> None:
        """What the call left on its modules, as one process would have left it."""
        for place, how in self.plan.state.items():
            value = state.get(self.subject.modules, place) if how != "same" else None
            if value is not None:
                state.put(self.subject.modules, place, leave(value, how, self.call))

    def put_back(self) -> None:
        if kept := self.kept or self.attributes:
            kept.put_back()
        self.streams.put_back()
        torch.set_rng_state(self.torch_stream)
        for weight, value in zip(self.subject.parameters, self.weights, strict=False):
            weight.data.copy_(value)


def alike(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) or (isinstance(b, Tensor) and same(a, b, loose()))


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
