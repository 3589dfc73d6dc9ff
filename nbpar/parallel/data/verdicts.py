"""What Python asks of all rows at once: do all hold, does any? A split call answers for the whole batch.

So `if mask.all()` takes the way that one process takes. The ranks' answers are put together in one small message. A plan knows
these answers and each `if tensor` that it was tried with: where a later batch is answered otherwise, the call may take another
way, and is tried anew with what was answered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin
from torch.utils._python_dispatch import _disable_current_modes

from nbpar.parallel.data import context
from nbpar.parallel.data.context import Stopped
from nbpar.parallel.data.ranks import to_list
from nbpar.parallel.data.rowwise import TALLY, VERDICT, one_step

NUMBERED = "_nbpar_of"  # an attribute of a sum of yes and no: of how many


def patches() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """Where torch is changed while a cell runs."""
    for name, function in ASKED.items():
        yield Tensor, name, asked
        yield torch, name, partial(instead, function)
    yield Tensor, "sum", summed
    yield Tensor, "__bool__", decided
    yield Tensor, "__eq__", compared


def asked(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`all` or `any` of a whole tensor."""
    every = original.__name__ == "all"

    @functools.wraps(original)  # torch knows its functions by name
    def ask(*args: Any, **kwargs: Any) -> Tensor:
        if not watched() or kwargs or len(args) != 1 or not followed(args[0]):
            return original(*args, **kwargs)
        return verdict(original, args[0], every)

    return ask


def instead(function: Any, original: Any) -> Any:
    return function


def summed(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sum of yes and no remembers of how many: as in `mask.sum() == mask.numel()`."""

    @functools.wraps(original)
    def add(*args: Any, **kwargs: Any) -> Tensor:
        result = original(*args, **kwargs)
        if watched() and len(args) == 1 and not kwargs and followed(args[0]) and args[0].dtype == torch.bool:
            setattr(result, NUMBERED, torch._C.TensorBase.numel(args[0]))
        return result

    return add


def compared(original: Callable[..., Any]) -> Callable[..., Any]:
    """`==`; of a sum of yes and no with their number it asks whether all hold."""

    @functools.wraps(original)
    def equal(self: Tensor, other: Any) -> Any:
        number = int.__pos__(other) if watched() and isinstance(other, int) else None  # a size notes what is made of it
        if number is None or getattr(self, NUMBERED, None) != number or not followed(self):
            return original(self, other)
        return verdict(lambda total: original(total, number), self, every=True, step=TALLY)

    return equal


def decided(original: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    """`if tensor`: the way that a call takes from here."""

    @functools.wraps(original)
    def truth(self: Tensor) -> bool:
        own = original(self)
        return told(own) if watched() and followed(self) else own

    return truth


ASKED = {name: asked(getattr(torch, name)) for name in ("all", "any")}
for _name, _function in ASKED.items():
    _register_builtin(_function, f"aten::{_name}")  # for scripts, which know torch's functions by identity


def watched() -> bool:
    """Whether a call is tried, or split, and it matters what it asks."""
    if torch.compiler.is_compiling():  # first: the compiler reads on from here
        return False
    asker = context.running or context.record
    return asker is not None and asker.answers is not None


def followed(tensor: Any) -> bool:
    """Whether its values are here."""
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
    return plain and torch._C._functorch.peek_interpreter_stack() is None


def verdict(question: Callable[[Tensor], Tensor], tensor: Tensor, every: bool, step: str = VERDICT) -> Tensor:
    """The answer for all rows, as a tensor. every: whether all must hold, else any. Raises Stopped."""

    def answer(tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            own = bool(to_list(question(tensor)))
        call = context.running
        if call is not None and (call.over or not call.trial):
            said = to_list(call.gather(torch.tensor([float(own)])))
            own = (all if every else any)(one > 0 for (one,) in said)
        return torch.tensor(told(own), device=tensor.device)

    return one_step(step, answer, (tensor,), every)


def told(own: bool) -> bool:
    """What the program is told. own: what this run finds. Raises Stopped where a split call goes another way than it was tried."""
    call = context.running
    if call is None:
        return bool(context.record.answers.next(own))
    answers = call.answers
    if call.over or answers is None:  # it runs again, for a backward pass
        return own
    if not call.trial:
        if not answers.expected(own):
            raise Stopped("it goes another way than before")
        return own
    known = answers.known()
    if known is None:
        raise Stopped("on fewer rows it goes another way")
    return known
