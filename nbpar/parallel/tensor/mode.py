"""Enter and leave `--how tensor` around a cell, on all ranks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nbpar.errors import OptionError, PeerFailed, Unsupported, suggest
from nbpar.parallel.files import new_notes, written_once
from nbpar.parallel.model.keep import refusal
from nbpar.parallel.model.layers import nests
from nbpar.parallel.model.session import in_backward, meet
from nbpar.parallel.patch import patched
from nbpar.parallel.report import Left, Report
from nbpar.parallel.ways import as_one

from .above import lists_may_hold_sharded
from .layers import in_parallel
from .ranks import Ranks, opened
from .split import Split, whole_for_a_call
from .whole import make_whole, whole_beside

KNOWN = ("how", "group", "checked", "failed", "keep", "out")


@contextmanager
def mode(options: Mapping[str, object], namespace: dict[str, Any], report: Report | None = None) -> Iterator[Report]:
    """Run what is inside with the layers of the namespace's models split over the ranks. Entered by all ranks alike.

    options: group (a process group, default all ranks), failed (called with an exception before this rank waits for the others).
    At the start, tensors in `namespace` are equal on all ranks and whole; at the end they are again, under the same objects.
    Raises OptionError, Unsupported where something cannot be done with shards, CollectiveMismatch where ranks disagree.
    """
    for name in options:
        if name not in KNOWN:
            raise OptionError(f"--how tensor has no option {name!r}.{suggest(name, KNOWN)}")
    report = report or Report()
    ranks = Ranks(options.get("group"))  # type: ignore[arg-type]
    if ranks.size == 1:
        yield report
        return
    with splitting(ranks, namespace, report, options.get("failed")):
        yield report


@contextmanager
def splitting(ranks: Ranks, namespace: dict[str, Any], report: Report, failed: object = None) -> Iterator[Session]:
    """The layers are split over these ranks. failed: see `mode`."""
    if why := refusal("--how tensor", namespace):
        raise Unsupported(why)
    session = Session(ranks, namespace, report)
    report.at_end = session.at_end
    tell: Any = failed or (lambda error: None)
    report.details["whole"] = False  # until the end: a caller must not use what a cell left that is not whole
    with opened(session.ranks):
        error: BaseException | None = None
        try:
            with session.running():
                yield session
        except BaseException as raised:
            error = raised
            tell(error)
        if error is None or (isinstance(error, Exception) and not isinstance(error, PeerFailed)):
            session.end(error, tell)
        if error is not None:
            raise error


class Session:
    """One cell. channel and failure: what a meeting at its end needs."""

    def __init__(self, ranks: Ranks, namespace: dict[str, Any], report: Report) -> None:
        self.ranks, self.channel, self.namespace, self.report = ranks, ranks.channel, namespace, report
        self.failure: BaseException | None = None
        self.split = Split(namespace)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.split.everything()
        notes = self.channel.decide(new_notes() if self.channel.place == 0 else "")
        with ExitStack() as stack:
            stack.enter_context(written_once(self.channel.place, notes))
            stack.enter_context(in_parallel())
            stack.enter_context(lists_may_hold_sharded())
            stack.enter_context(patched(nn.Module, "__call__", self._module_call))
            stack.enter_context(patched(torch.optim.Optimizer, "load_state_dict", self._state_is_split))
            torch.compiler.set_stance("force_eager")
            stack.callback(torch.compiler.set_stance, "default")
            yield

    def _module_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        considered = self.split.considered

        def __call__(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if module not in considered:
                self.place_before(module)
            if isinstance(module, nn.TransformerEncoder):
                mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
                if nests(module, mask):
                    self.report.say(f"{type(module).__name__}, evaluated with src_key_padding_mask, runs whole on every rank")
                    with as_one(type(module).__name__), whole_for_a_call(module):
                        return original(module, *args, **kwargs)
            return original(module, *args, **kwargs)

        return __call__

    def _state_is_split(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load_state_dict(optimiser: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = original(optimiser, *args, **kwargs)
            self.split.state(optimiser)
            return result

        return load_state_dict

    def place_before(self, module: nn.Module | None, args: Any = (), kwargs: Any = None) -> None:
        """Split what is about to be called, if it is new. None: a function, which may call anything."""
        if module is None:
            self.split.everything()
        elif module not in self.split.considered:
            self.split.model(type(module).__name__, module)

    @contextmanager
    def at_end(self) -> Iterator[Left | None]:
        """See `Report`. None in a backward pass."""
        if in_backward():
            yield None
            return
        with torch._C.DisableTorchFunctionSubclass(), whole_beside(self.namespace, self.split.replaced) as others:
            yield None if others is None else Left(others)

    def end(self, error: BaseException | None, tell: Callable[[BaseException], None]) -> None:
        """The ranks compare how it ended, and what it leaves becomes whole; after an error too, as one process keeps that."""
        try:
            self._meet(error)
            self._finish(error)
        except Exception as late:
            if late is not error:
                tell(late)
            raise

    def _meet(self, error: BaseException | None) -> None:
        try:
            meet(self, error)
        except PeerFailed as late:
            raise error or late from None  # the others were stopped because of this very error

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            traceback.clear_frames(error.__traceback__)  # they hold graphs
            traceback.clear_frames(getattr(sys, "last_traceback", None))
        parts, lines = self.split.parts(), self.split.lines()
        try:
            make_whole(self.namespace, self.split.replaced)
        except Unsupported as stuck:
            if error is None:
                raise
            self.report.say(str(stuck))
            return
        if not parts:
            self.report.say("nothing was split: no module with a Linear, Conv or Embedding that can be split was read or called")
        for line in lines:
            self.report.say(line)
        ranks = self.ranks
        self.report.details.update(
            whole=True, split=parts, gathers=ranks.gathers, reductions=ranks.reductions, bytes=ranks.bytes
        )  # fmt: skip
