"""The first call of a kind: may it be split, and how are its outputs made of rows? Tried, not assumed.

A glance at a row or two a rank, whole and split, is enough where every operator is known to keep rows apart (`rowwise`). Otherwise
values decide: a few rows are run whole, then split, with disturbed weights and with holes in the arguments (zeros), so that means
over masks do not pass as means over rows: outputs, state left on modules, random draws and gradients must agree. First quickly,
within narrow bounds; what does not pass is tried with more rows in double precision, which decides. All of it leaves no trace, and
all ranks come to the same plan. The first call of such a plan runs whole, and its rows must give the same (`once`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from nbpar.parallel.data.attempt import RAISES
from nbpar.parallel.data.draws import Unlike
from nbpar.parallel.data.gradients import Gradients
from nbpar.parallel.data.layouts import reduced
from nbpar.parallel.data.plan import Candidate, Plan, Refusal, candidates, sizes
from nbpar.parallel.data.rowwise import COUNTED, FEWER, NEW
from nbpar.parallel.data.subject import Subject
from nbpar.parallel.data.trial import Final, Trial, Unsuited

ALL = sys.maxsize
HARMLESS = ("torch.nn.", "transformers.")  # where hooks are made that do not look at rows
REMEDY_ROWS = "Mark the part that treats rows one by one with `@nbpar.split`, or name the dimension of the batch: `--batch-dim D`"


def check(  # noqa: PLR0917
    subject: Subject,
    flat: Sequence[Any],
    spec: Any,
    batch_dim: int | None,
    gradients: Gradients,
    answers: tuple[bool, ...] = (),
    every: bool = False,
) -> Plan | Refusal:
    """A plan for calls of this kind, or why there is none. answers: known ones to what it asks of all rows. every: what is tried
    is tried at all rows. Collective.

    Ways to cut the arguments are glanced at in turn. What is not known is tried at once. What goes by the number or the place of
    rows is not tried: a few do not show what many give, and with all of them a check is two forward passes, for programs of which
    nearly none turns out to keep rows apart. Where rows meet in a known operator, it is likelier that rows are elsewhere than that
    values say otherwise: other ways come first.
    """
    size = gradients.ranks.size
    kinds = candidates(flat, size, batch_dim)
    trials = [partial(Trial, subject, flat, spec, candidate, gradients, answers=answers) for candidate in kinds]
    glances = gradients.ranks.all_here and (subject.precise or subject.module is None)  # a function's weights are its own business
    precise = subject.precise and not reduced()
    doubts, reasons = [NEW] * len(trials), [""] * len(trials)
    for late in (False, True):
        for at, trial in enumerate(trials):
            try:
                if glances and not late:
                    return glanced(trial, size)
            except Final as final:
                return Refusal(str(final))
            except Unlike as unlike:
                doubts[at] = reasons[at] = str(unlike)
            if doubts[at].startswith((RAISES, COUNTED)) or late == doubts[at].startswith(NEW):
                continue
            try:
                return replace(tried(trial, size, precise, every=every), counted=sizes(flat) if every else ())
            except Final as final:
                return Refusal(str(final), REMEDY_ROWS)
            except Unlike as unlike:
                reasons[at] = str(unlike)
    first = next((value for value in flat if isinstance(value, Tensor) and value.dim()), None)
    if first is not None and first.shape[0] < size:
        return Refusal(f"a batch of {first.shape[0]} has fewer rows than there are ranks ({size})")
    return Refusal(reasons[0], REMEDY_ROWS) if reasons else Refusal("no argument has as many rows as there are ranks")


def glanced(trial: Callable[[int], Trial], size: int) -> Plan:
    """A glance at one row a rank; where a single one is not treated like several, at two. Raises Unlike."""
    try:
        return trial(size).glance()
    except Unsuited:
        raise
    except Unlike as unlike:
        if not str(unlike).startswith(FEWER) or trial(2 * size).rows == size:
            raise
    return trial(2 * size).glance()


def tried(trial: Callable[[int], Trial], size: int, precise: bool, *, every: bool) -> Plan:
    """A quick look at as few rows as ranks can share unevenly; where that leaves anything open, a thorough one. Raises Unlike.

    every: one look at all rows, for a program that goes another way with all of them than with some.
    """
    if every:
        return trial(ALL).thorough()
    if precise:
        try:
            return trial(size + 1).quick()
        except Final:
            raise
        except Unlike:
            pass
    return trial(2 * size + 1).thorough()


def still(subject: Subject, flat: Sequence[Any], spec: Any, plan: Plan, gradients: Gradients) -> bool:
    """Whether a plan holds for this call too, by a short look. Collective."""
    candidate = Candidate(plan.base, flat[plan.base].shape[plan.dim], plan.cuts)
    return Trial(subject, flat, spec, candidate, gradients, plan.rows, plan.answers).again(plan)


def refused_before(subject: Subject) -> Refusal | None:
    """What is known without a trial."""
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in subject.parameters):
        return Refusal("its parameters get their shapes in this call")
    for module in subject.modules:
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            for hook in getattr(module, name, {}).values():
                origin = getattr(hook, "__module__", None) or type(hook).__module__
                if not origin.startswith(HARMLESS):
                    return Refusal(
                        f"a hook on its {type(module).__name__} would see rows of the batch only",
                        "Remove the hook in this cell",
                    )
    return None
