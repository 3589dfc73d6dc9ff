"""One run of a subject on this rank's rows, and the ranks' agreement that it went well on all of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from nbpar.parallel.data import context, gradients
from nbpar.parallel.data.border import Enter
from nbpar.parallel.data.context import Call, Stopped
from nbpar.parallel.data.draws import Unlike
from nbpar.parallel.data.gradients import AHEAD_OF_DATA
from nbpar.parallel.data.layouts import Layout
from nbpar.parallel.data.lazy import ROWS_FIRST, Through, unsettled
from nbpar.parallel.data.rowwise import FEWER
from nbpar.parallel.data.structure import flatten
from nbpar.parallel.data.subject import Subject

RAISES = f"{FEWER} it raises"


def raised(error: Exception) -> str:
    return f"{RAISES} {type(error).__name__}: {str(error)[:100]}"


@dataclass
class Local:
    """This rank's part of the outputs, flattened. way: that the run went, by the functions that it called; None: not known."""

    values: list[Any]
    spec: Any
    way: int | None = None


def attempt(  # noqa: PLR0917
    subject: Subject,
    run: Callable[..., Any],
    flat: Sequence[Any],
    spec: Any,
    cuts: Sequence[tuple[int, Layout]],
    call: Call,
    watch: Any = None,
    accept: Callable[[Local], Sequence[Any]] = lambda local: (),
) -> Local | str:
    """Run on this rank's rows. If any rank fails, every rank gets a str, which says why if it is this rank that failed.

    watch: a context to run in. accept: looks at the outputs; raises Unlike; gives what must be alike on all ranks.
    """
    ok, why, words, found = False, "another rank cannot run it on its rows", [0, 0], None
    start = gradients.now()
    try:
        entered = enter(flat, cuts, call)
        versions = [(value, value._version) for value in entered if isinstance(value, Tensor) and not value.is_inference()]
        args, kwargs = tree_unflatten(entered, spec)
        with context.inside(call), watch or nullcontext():
            output, way = call.ranks.alone(lambda: run(*args, **kwargs), watched=not (call.trial or subject.compiled))
        found = Local(*flatten(output), way)
        if any(tensor._version != version for tensor, version in versions):
            raise Unlike("it changes an argument in place")
        words = [word((str(found.spec), call.ranks.homes(found.values), *accept(found))), trace(subject, found, start, call)]
        ok = True
    except Unlike as error:
        why = str(error)
    except Stopped as stopped:
        why = str(stopped) or "it does not do what its first call did"
    except Exception as error:
        why = raised(error)
    if call.over:  # a rank has left the call already
        return why
    call.over = True
    together, equal, _ = call.ranks.agree(ok, words[0], words[1])
    if not together or not equal[0] or found is None:
        return why if not together else "its results are of different kinds, or on different ranks, for different rows"
    call.even = equal[1] and not call.hidden
    if not call.even:
        known: list[Tensor] = [leaf for leaf in subject.parameters if leaf.requires_grad and leaf.is_leaf]
        if any(call.ranks.objects(any(id(leaf) not in subject.place for leaf in call.leaves))):
            return "ranks use different tensors that are not the module's parameters"
        if any(gradients.has_hooks(leaf) for leaf in known):
            return "hooks look at gradients that only some ranks have"
        call.leaves = known
    return found


def enter(flat: Sequence[Any], cuts: Sequence[tuple[int, Layout]], call: Call) -> list[Any]:
    """The arguments with this rank's rows; what was one tensor stays one."""
    entered, done = list(flat), {}
    for at, layout in cuts:
        key = (id(flat[at]), layout)
        if key not in done:
            rows = unsettled(flat[at])
            if rows is not None and layout == ROWS_FIRST and rows.call.share == call.share:
                done[key] = Through.apply(rows.local, rows.call)
                setattr(flat[at], AHEAD_OF_DATA, True)
            else:
                done[key] = Enter.apply(flat[at], layout, call)
        entered[at] = done[key]
    return entered


def trace(subject: Subject, local: Local, start: int, call: Call) -> int:
    """Finds what the call's gradients go to, and gives a word for it."""
    if not torch.is_grad_enabled():
        return 0
    roots = [value for value in local.values if isinstance(value, Tensor)]
    left = [value for module in subject.modules for value in module.__dict__.values() if isinstance(value, Tensor)]
    roots += [value for value in left if value.grad_fn is not None and value.grad_fn._sequence_nr() >= start]
    graph = gradients.walk(roots, start)
    call.leaves, call.hidden = graph.leaves, graph.hidden
    gradients.average_outside(graph.outside, call)
    if any(id(leaf) not in subject.place for leaf in call.leaves):
        subject.refresh()
    return word([identity(leaf, subject) for leaf in call.leaves] + [len(graph.outside), call.hidden])


def identity(leaf: Tensor, subject: Subject) -> Any:
    """The same for the same leaf on every rank."""
    place = subject.place.get(id(leaf))
    if place is not None:
        return place, gradients.has_hooks(leaf)
    return tuple(leaf.shape), [float(value) for value in leaf.detach().reshape(-1)[:4]]


def word(value: Any) -> int:
    return zlib.crc32(repr(value).encode()) + 2
