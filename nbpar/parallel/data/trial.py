"""One way to cut a call's arguments, tried on a few rows: a whole run, a split run, and whether they say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from nbpar.parallel.data import context, counts, probes, rowwise
from nbpar.parallel.data.answers import Answers
from nbpar.parallel.data.arguments import Arguments
from nbpar.parallel.data.attempt import Local, attempt, raised
from nbpar.parallel.data.context import Call, Stopped
from nbpar.parallel.data.draws import WRITES, Drawn, Record, Replay, Streams, Unlike
from nbpar.parallel.data.gradients import Gradients, now
from nbpar.parallel.data.layouts import How, Layout, Share, find, layouts, loose, plain, reduced, same, tolerance
from nbpar.parallel.data.memory import GIVES_BACK, OUTSIDE, Own, Writes, show
from nbpar.parallel.data.plan import Candidate, Plan
from nbpar.parallel.data.rowwise import NEW, PLACES
from nbpar.parallel.data.state import Place, State
from nbpar.parallel.data.structure import PLAIN, flatten
from nbpar.parallel.data.subject import Subject
from nbpar.parallel.data.zeros import HIDDEN

NARROW = 2e-6  # how close a quick look in single precision must be: some rounding errors


class Final(Unlike):
    """No other look would say otherwise."""


class Unsuited(Unlike):
    """The whole call cannot be run on these values: no evidence."""


@dataclass
class WholeRun:
    """What a whole call gave."""

    values: list[Any]
    spec: Any
    state: dict[Place, Tensor]
    numbers: list[dict[str, Any]]
    contained: str | None
    draws: list[Drawn]
    answers: tuple[bool, ...]
    reads: bool
    streams: Streams
    gradients: probes.Gradients | None
    steps: Steps | None
    writes: bool = False


@dataclass
class Steps:
    """The operators of a whole run. read: what Python read. entered: its arguments. values, state: what it gave and left."""

    log: rowwise.Log
    notes: counts.Notes
    read: list[Tensor]
    entered: list[tuple[Tensor, rowwise.Way]]
    values: list[Any] = field(default_factory=list)
    state: dict[Place, Tensor] = field(default_factory=dict)


class Trial:
    """One candidate, tried on some rows. Methods raise Unlike, alike on all ranks."""

    def __init__(  # noqa: PLR0917
        self,
        subject: Subject,
        flat: Sequence[Any],
        spec: Any,
        candidate: Candidate,
        gradients: Gradients,
        rows: int,
        answers: tuple[bool, ...] = (),
    ) -> None:
        self.subject, self.flat, self.spec = subject, flat, spec
        self.candidate, self.gradients, self.ranks = candidate, gradients, gradients.ranks
        self.rows = rows = min(candidate.rows, rows)
        self.share = Share(self.ranks.sizes(rows), self.ranks.rank)
        index = torch.linspace(0, candidate.rows - 1, rows).long()
        few: dict[Any, Tensor] = {}
        for at, layout in candidate.cuts:
            key = (id(flat[at]), layout)
            if key not in few:
                few[key] = flat[at].detach().index_select(layout.dim, index.to(flat[at].device))
        self.few = {at: few[id(flat[at]), layout] for at, layout in candidate.cuts}
        self.answers = answers  # to what it asks of all rows, as far as they are known
        self.bound: float | None = None  # tolerance, if not that of the type
        self.follows = False  # rows from operator to operator
        self.hidden = False  # whether a zero may have hidden something from it here

    def glance(self) -> Plan:
        """Forward only, with the rows and weights as they are: that is enough where operators show that rows are apart."""
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.subject.modules):
            raise Unlike(f"{NEW}: what a script makes of sizes")
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            raise Unlike(f"{NEW}: what the backward pass needs is packed")
        with torch.inference_mode(False):
            weights = [(weight, weight.data) for weight in self.subject.parameters]

        def show() -> None:
            with torch.inference_mode(False):
                for weight, data in weights:
                    weight.data = data

        self.bound, self.follows = loose() or NARROW, True
        try:
            plan = self.evidence(self.few, False, show, gradients=False)
        except Stopped as stopped:
            raise Unlike(str(stopped)) from None
        finally:
            self.follows = False
        if plan.writes:
            raise Unlike(WRITES)
        return replace(plan, verified=True)

    def quick(self) -> Plan:
        """In the program's own precision, within narrow bounds."""
        return self.collect(double=False, bound=NARROW)

    def thorough(self) -> Plan:
        """In double precision, if the program takes it."""
        if self.ranks.doubles and not reduced():
            try:
                return self.collect(double=True)
            except Unsuited:  # a program that insists on its own type
                pass
        return self.collect(double=False)

    def collect(self, double: bool, bound: float | None = None) -> Plan:
        """What `looked` says, if no zero may have hidden anything. Raises Unlike."""
        self.bound = bound
        plan = self.looked(double)
        if self.ranks.largest([float(self.hidden)])[0]:
            raise Final(HIDDEN)
        return plan

    def looked(self, double: bool) -> Plan:
        """One look at rows with holes; where the program does not take them, at the rows as they are and at each kind of hole."""
        with self.subject.disturbed(double) as show_afresh:
            variants = self.holes()
            try:
                return self.evidence(variants[0], double, show_afresh, gradients=True)
            except Unsuited:
                pass
            plan = self.evidence(self.few, double, show_afresh, gradients=True)
            for holed in variants:
                try:
                    other = self.evidence(holed, double, show_afresh, gradients=False)
                except Unsuited:
                    continue
                if (other.outputs, other.state) != (plan.outputs, plan.state):
                    raise Unlike("its result is a mean over some entries (a mask?), which rows share unevenly")
        return plan

    def again(self, plan: Plan) -> bool:
        """Whether a short look at these rows still says the same: with the weights as they are, and no gradients."""
        try:
            if plan.writes:
                with self.subject.disturbed(False) as show_afresh:
                    now = self.evidence(self.few, False, show_afresh, gradients=False)
            else:
                now = self.evidence(self.few, False, None, gradients=False)
        except Unlike:
            return False
        return (now.outputs, now.state, now.draw_layouts) == (plan.outputs, plan.state, plan.draw_layouts)

    def holes(self) -> list[dict[int, Tensor]]:
        """The few rows with some entries zero and, on the CPU, some labels ignored; then with only the one or the other."""
        chance = torch.Generator().manual_seed(11)

        def pierce(tensor: Tensor, value: int) -> Tensor:
            kept = (torch.rand(tensor.shape, generator=chance) > 0.3).to(tensor.device)
            return torch.where(kept, tensor, torch.full_like(tensor, value))

        by_tensor: dict[int, Tensor] = {}
        for tensor in self.few.values():
            by_tensor.setdefault(id(tensor), pierce(tensor, 0))
        zero = {at: by_tensor[id(tensor)] for at, tensor in self.few.items()}
        labels = {at: tensor for at, tensor in self.few.items() if tensor.dtype == torch.int64 and at != self.candidate.base}
        if labels and all(tensor.device.type == "cpu" for tensor in labels.values()):
            ignored = {at: pierce(tensor, -100) for at, tensor in labels.items()}
            return [{**zero, **ignored}, zero, {**self.few, **ignored}]
        return [zero]

    def evidence(self, few: dict[int, Tensor], double: bool, show_afresh: Callable[[], None] | None, gradients: bool) -> Plan:
        """What a whole and a split run say. Raises Unsuited where the whole run fails.

        show_afresh: puts the weights right, should the call write to them; None where it is known not to.
        """
        kept, streams = State(self.subject.modules), Streams.now()
        total = None if self.ranks.all_here else self.ranks.total
        before = self.subject.fingerprint(total) if show_afresh else None
        writes = Writes(self.subject.parameters)

        def put_back() -> bool:
            """Gives whether the weights have been written to."""
            torch.clear_autocast_cache()  # it knows weights by name, not by value; and where it is full, fewer operators run
            kept.put_back()
            streams.put_back()
            written = show_afresh is not None and (writes.seen or self.subject.fingerprint(total) != before)
            if show_afresh and written:
                show_afresh()
            return written

        try:
            inputs = self.inputs(few, double)
            whole = self.run_whole(inputs, gradients, kept, writes)
            whole.writes = put_back()
            return self.run_split(inputs, whole, kept, streams, writes)
        finally:
            put_back()

    def inputs(self, few: dict[int, Tensor], double: bool) -> list[Any]:
        """The flattened arguments with few rows; the arguments without rows as they are."""
        made: dict[int, Tensor] = {}

        def fresh(tensor: Tensor, like: Tensor) -> Tensor:
            if id(tensor) not in made:
                new = tensor.detach().double() if double and tensor.is_floating_point() else tensor.detach()
                made[id(tensor)] = new.clone().requires_grad_(like.requires_grad)
            return made[id(tensor)]

        return [fresh(few.get(at, value), value) if isinstance(value, Tensor) else value for at, value in enumerate(self.flat)]

    def run_whole(self, inputs: list[Any], gradients: bool, kept: State, writes: Writes) -> WholeRun:
        flat = copies(inputs)
        self.subject.tried += self.rows / self.candidate.rows
        answers = Answers(self.answers) if self.ranks.all_here else None
        own = Own((*(value for value in flat if isinstance(value, Tensor)), *self.subject.tensors()))
        record = Record([flat[at] for at, _ in self.candidate.cuts], own, writes, answers, followed=self.follows)
        args, kwargs = tree_unflatten(flat, self.spec)
        objects, start = Arguments(args, kwargs, flat), now()
        try:
            with context.inside(None), context.watching(record), self.following(flat, record.touched) as steps, record:
                output = self.ranks.together(lambda: self.subject.trial(*args, **kwargs))
        except Exception as error:
            if OUTSIDE in str(error):  # seen before it was done, by one rank or all of them
                raise Final(OUTSIDE) from None
            raise Unsuited(raised(error)) from None
        finally:
            changed = objects.put_back()
        if changed:
            raise Final(f"it changes an argument ({changed}), which would have a rank's rows only")
        self.hidden |= record.rows.hidden
        values, spec = flatten(output)
        if record.reads_rows:
            kind = Unlike if self.ranks.all_here else Final  # where layers are elsewhere, each look is dear
            raise kind("Python reads values of its rows (`.item()`, `if tensor`, a count): they would differ between ranks")
        if not self.ranks.all_here and (name := spec.strange):
            raise Final(f"it returns a {name}, which cannot be put together from rows of several stages")
        if show(values, (flat[at] for at, _ in self.candidate.cuts)):
            raise Final(GIVES_BACK)
        if any(bool(torch.isnan(v).all()) for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.numel()):
            raise Unsuited("its result is not a number")
        for value in values:
            if not isinstance(value, (Tensor, *PLAIN)):
                raise Unlike(f"it returns a {type(value).__name__}, which cannot be put together from rows")
        left = kept.left()
        if steps:
            if rowwise.opaque(value for value in (*values, *left.tensors.values()) if isinstance(value, Tensor)):
                raise Unlike(f"{NEW}: its backward pass")
            steps.values, steps.state = values, left.tensors
        wholes = [value.detach().clone() if isinstance(value, Tensor) else value for value in values]
        state, streams = {place: value.detach().clone() for place, value in left.tensors.items()}, Streams.now()
        seen = probes.gradients(self.subject, values, inputs, start) if gradients else None
        if seen and not seen.finite:
            raise Unsuited("its gradients are not numbers")
        return WholeRun(
            wholes, spec, state, left.numbers, left.contained, record.draws, answers.found if answers else (),
            record.reads, streams, seen, steps,
        )  # fmt: skip

    @contextmanager
    def following(self, flat: list[Any], read: list[Tensor]) -> Iterator[Steps | None]:
        """Operators, and what Python makes of sizes, are noted meanwhile if this look follows them."""
        if not self.follows:
            yield None
            return
        cuts = dict(self.candidate.cuts)
        entered: list[tuple[Tensor, rowwise.Way]] = [
            (value, rowwise.Rows(cuts[at].dim, cuts[at].outer) if at in cuts else None)
            for at, value in enumerate(flat)
            if isinstance(value, Tensor)
        ]
        buffers = [buffer for module in self.subject.modules for buffer in module._buffers.values() if buffer is not None]
        entered += [(tensor, None) for tensor in (*self.subject.parameters, *buffers)]
        single = max(self.share.sizes) == 1  # on every rank: all of them must stop
        with counts.watching(1, self.rows) as notes, context.logging(rowwise.Log(self.rows if single else 0)) as log:
            yield Steps(log, notes, read, entered)

    def run_split(self, inputs: list[Any], whole: WholeRun, kept: State, streams: Streams, writes: Writes) -> Plan:
        if whole.contained:
            raise Unlike(f"it keeps tensors in a container (`.{whole.contained}`)")
        call = Call(
            self.share, self.ranks, self.gradients, trial=True, answers=Answers(whole.answers) if self.ranks.all_here else None
        )
        replay = Replay(call, whole.draws, writes)
        hows: list[Any] = []
        state: dict[Place, Any] = {}
        now: dict[Place, Tensor] = {}
        follow = rowwise.Follow(whole.steps.log, self.share, whole.steps.entered) if whole.steps else None

        def accept(local: Local) -> Sequence[Any]:
            if call.answers and call.answers.found != whole.answers:
                raise Unlike("on fewer rows it goes another way")
            if len(replay.layouts) != len(whole.draws):
                raise Unlike("it draws other random numbers for fewer rows")
            if not Streams.now().same_python(whole.streams):
                raise Unlike("it draws random numbers by rows with numpy or `random`")
            if local.spec != whole.spec:
                raise Unlike("its result has another structure for fewer rows")
            said = self.said_by_operators(whole.steps, follow) if whole.steps and follow else None
            hows[:] = [self.match(local.values[at], value, at, said) for at, value in enumerate(whole.values)]
            left = kept.left()
            if left.numbers != whole.numbers:
                raise Unlike("numbers that it keeps on the module depend on the number of rows")
            if left.tensors.keys() != whole.state.keys():
                raise Unlike("it leaves other tensors on the module for fewer rows")
            now.update(left.tensors)
            state.update({place: self.match(now[place], value, place, said) for place, value in whole.state.items()})
            return [hows, [*state.values()], replay.layouts] if whole.steps else ()

        self.subject.tried += max(self.share.sizes) / self.candidate.rows
        with context.logging(follow):
            local = attempt(self.subject, self.subject.trial, copies(inputs), self.spec, self.candidate.cuts, call, replay, accept)
        if isinstance(local, str):
            raise Unlike(self.said(local))
        places = sorted(state, key=lambda place: (place.module, place.name))
        pairs = [*zip(local.values, whole.values, strict=True), *((now[place], whole.state[place]) for place in places)]
        if whole.steps:  # what the ranks found is alike already
            settled = [*hows, *(state[place] for place in places)]
            self.put_together(settled, pairs)
        else:
            outputs_here, state_here = self.agreed(hows, [state[place] for place in places], replay.layouts)
            settled = self.settle([*outputs_here, *state_here], pairs)
        outputs, how_state = settled[: len(hows)], dict(zip(places, settled[len(hows) :], strict=True))
        if whole.gradients:
            probes.compare(self.subject, local.values, outputs, call, inputs, whole.gradients, self.bound)
        return Plan(
            self.candidate.base, self.candidate.cuts, tuple(outputs), whole.spec,
            {place: how for place, how in how_state.items() if how is not None},
            tuple(draw.name for draw in whole.draws), tuple(replay.layouts),
            not streams.same_python(whole.streams), whole.reads, whole.writes, self.rows, whole.answers,
        )  # fmt: skip

    def said_by_operators(self, steps: Steps, follow: rowwise.Follow) -> dict[Any, rowwise.Way]:
        """Where the outputs, by number, and what is left on modules, by place, have their rows. Raises Unknown."""
        follow.end(steps.notes, steps.read)
        results = (*enumerate(steps.values), *steps.state.items())
        return {key: follow.way(value) for key, value in results if isinstance(value, Tensor)}

    def match(self, local: Any, whole: Any, key: int | Place, said: dict[Any, rowwise.Way] | None) -> Any:
        """How this rank's value is part of the whole one. said: what operators say of it."""
        what = f"`.{key.name}`" if isinstance(key, Place) else "its result"
        if not isinstance(whole, Tensor):
            if repr(local) != repr(whole):
                raise Unlike(f"{what} {str(whole)[:40]!r} depends on the rows of the batch together")
            return None
        how: Any = None
        if isinstance(local, Tensor) and said is None:
            how = find(local, whole, self.share, self.within(whole))
        elif isinstance(local, Tensor) and said is not None:  # values may fit more than one layout
            how = self.as_said(local, whole, said[key])
        if how is None:
            shape = tuple(local.shape) if isinstance(local, Tensor) else type(local).__name__
            raise Unlike(
                f"rows mix: {what} of {self.share.count} rows {shape} is no part of that of {self.share.rows} {tuple(whole.shape)}"
            )
        return how

    def as_said(self, local: Tensor, whole: Tensor, rows: rowwise.Way) -> How | None:
        if isinstance(rows, rowwise.Rows):
            layout = Layout(rows.dim, rows.outer)
            fits = layout in layouts(local, whole, self.share)
            return layout if fits and self.near(local, layout.cut(whole, self.share)) else None
        if rows is None:
            return "same" if self.near(local, whole) else None
        return rows if rows != PLACES and local.shape == whole.shape else None

    def put_together(self, hows: Sequence[How | None], pairs: Sequence[tuple[Any, Any]]) -> None:
        """What the ranks have makes what each of them has whole: their weights are the same. Raises Unlike. Collective."""
        fine = True
        for how, (local, whole) in zip(hows, pairs, strict=True):
            if isinstance(how, Layout):
                fine &= self.near(how.gather(local.detach(), self.share, self.ranks), whole)
            elif how in ("mean", "sum"):
                part = local.detach().double() * (self.share.weight if how == "mean" else 1.0)
                every = self.ranks.all_reduce(part.contiguous(), "agreement")
                fine &= whole.is_floating_point() and self.near(every, whole.double())
        if self.ranks.largest([float(not fine)])[0]:
            raise Unlike("rows mix: all rows together give another result than each rank's")

    def near(self, a: Tensor, b: Tensor) -> bool:
        """Equal, where operators have said why. A mean of what a BatchNorm gives is nothing but rounding."""
        return same(a, b, self.bound, scale=1.0)

    def within(self, whole: Tensor) -> float | None:
        if self.bound is None or reduced():
            return self.bound
        return min(self.bound, tolerance(whole.dtype))

    def said(self, own: str) -> str:
        """The first rank's own reason, the same on all."""
        reasons = self.ranks.objects(own)
        return next((reason for reason in reasons if not reason.startswith("another rank")), reasons[0])

    def agreed(self, outputs: list[Any], state: list[Any], draws: list[Layout | None]) -> tuple[list[Any], list[Any]]:
        """The ranks' findings on outputs and state, which must be the same layouts; those of draws within a column."""
        columns, *findings, every_draws = zip(*self.ranks.objects((self.ranks.column, outputs, state, draws)), strict=True)
        found: dict[int, Any] = {}
        for column, theirs in zip(columns, every_draws, strict=True):
            if found.setdefault(column, theirs) != theirs:
                raise Unlike("it draws other random numbers on other ranks")
        return same_ways(findings[0]), same_ways(findings[1])

    def settle(self, hows: list[Any], pairs: list[Any]) -> list[How | None]:
        """What kinds of numbers the plain ones are. pairs: what is here, and the whole."""
        at = [at for at, how in enumerate(hows) if how == "plain"]
        found = plain([pairs[i] for i in at], self.share, self.ranks, [self.within(pairs[i][1]) for i in at])
        for i, kind in zip(at, found, strict=True):
            if kind is None:
                shape = tuple(pairs[i][1].shape)
                raise Unlike(f"its result {shape} is neither alike on all ranks, nor a mean or sum over rows")
            hows[i] = kind
        return hows


def same_ways(every: Sequence[list[Any]]) -> list[Any]:
    """Of each value, the way that all ranks found."""
    for ways in zip(*every, strict=True):
        if len(kinds := set(ways)) > 1:
            if not all(isinstance(way, Layout) for way in kinds):
                raise Unlike("rows mix: ranks find different layouts of its result")
            raise Unlike("the layout of its rows is not the same on all ranks")
    return every[0]


def copies(originals: Sequence[Any]) -> list[Any]:
    """Tensors that a program may change in place; what was one tensor stays one."""
    made: dict[int, Any] = {}
    return [made.setdefault(id(value), value.clone()) if isinstance(value, Tensor) else value for value in originals]
