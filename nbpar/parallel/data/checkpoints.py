"""Activation checkpointing: what is computed again in the backward pass is inside its call again.

The two functions behind `torch.utils.checkpoint.checkpoint` are replaced, since programs import `checkpoint` itself by name.
A checkpoint outside of any call runs whole: its recomputation must meet the very same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils import checkpoint as checkpointing

from nbpar.parallel.data import context, counts
from nbpar.parallel.report import Report

LINE = "A checkpoint outside of a module's call runs whole on every rank. To split it, use checkpoint inside a module."


def again(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run in the call and from the place in its random draws where it is now."""
    call = context.running
    draws = call.draws if call is not None else None
    at = draws.at if draws is not None else 0

    def recompute(*args: Any, **kwargs: Any) -> Any:
        if context.busy and context.running is call:
            return function(*args, **kwargs)
        with context.inside(call), draws.once_more(at) if draws is not None else nullcontext():
            return function(*args, **kwargs)

    return recompute


def kept(report: Report) -> Callable[[Any], Any]:
    """For checkpoints with use_reentrant=False. The replaced generator runs around the function's first run."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
            if context.busy:
                if args[1:2] != (checkpointing.noop_context_fn,):
                    counts.found("what is computed again in its backward pass may be something else")
                yield from original(again(function), *args, **kwargs)
                return
            report.say(LINE)
            with context.inside(None):
                yield from original(again(function), *args, **kwargs)

        return generator

    return make


def reentrant(report: Report) -> Callable[[Any], Any]:
    """For checkpoints with use_reentrant=True. A trial keeps activations: it would not see what their backward pass does."""

    def make(original: Any) -> Any:
        class CheckpointFunction:
            @staticmethod
            def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
                if context.busy and context.trying():
                    return function(*args)
                if context.busy:
                    return original.apply(again(function), preserve, *args)
                report.say(LINE)
                with context.inside(None):
                    return original.apply(again(function), preserve, *args)

        return CheckpointFunction

    return make
