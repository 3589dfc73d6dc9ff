"""A trial may fail on values that one rank alone has. It then goes on with zeros, so that no rank waits for another, and all
ranks are told at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbpar.parallel.data.context import Stopped

from .channel import channel

if TYPE_CHECKING:
    from .dispatch import Dispatch

OF_OTHERS = "it draws random numbers for other rows too"


class Failures:
    """What was worked around on this rank."""

    def __init__(self) -> None:
        self.first: Exception | None = None

    def run(self, function: Callable[[], Any], stand_in: Callable[[], Any]) -> Any:
        """function's result; where it fails, what stands for it."""
        try:
            return function()
        except (Exception, Stopped) as error:
            result = stand_in()
            self.first = self.first or (error if isinstance(error, Exception) else RuntimeError(str(error) or OF_OTHERS))
            return result


@contextmanager
def worked_around(dispatch: Dispatch) -> Iterator[None]:
    """Raises the first failure at the end, on the rank that had it."""
    mine = Failures()
    outer, dispatch.failures = dispatch.failures, mine
    try:
        yield
    finally:
        dispatch.failures = outer
    if mine.first is not None:
        raise mine.first


def together(dispatch: Dispatch, function: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """function's result. If it fails, it fails on all ranks of the group, by default all in lockstep. Collective."""
    result, failure = None, None
    try:
        with worked_around(dispatch):
            result = function()
    except Exception as error:
        failure = error
    everyone = group or channel().everyone
    texts: list[str] = [""] * dist.get_world_size(everyone)
    dist.all_gather_object(texts, f"{type(failure).__name__}: {failure}" if failure is not None else "", everyone)
    if failure is not None:
        raise failure
    if any(texts):
        raise RuntimeError(next(text for text in texts if text))
    return result


def zeros(value: Any) -> Any:
    """Of a tensor on meta: zeros here."""
    if not isinstance(value, Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=channel().device).zero_()
    return made.requires_grad_() if value.requires_grad else made
