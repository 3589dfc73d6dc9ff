"""Calls in a mesh: which are split over the replicas, and which of those are made in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from nbpar.parallel.data import context
from nbpar.parallel.data.call import Splitter
from nbpar.parallel.data.subject import Subject
from nbpar.parallel.model.channel import Channel, channel
from nbpar.parallel.model.micro import Known, Micro
from nbpar.parallel.model.transfer import forget
from nbpar.parallel.model.trial import Whole


class Places(Protocol):
    """A cell of the mode of the second axis. channel: what the ranks of a row say to each other."""

    channel: Channel

    def place_before(self, module: nn.Module | None, args: Any, kwargs: Any) -> None:
        """Place what is about to be called, if it is new. None: a function, which may call anything."""


@dataclass
class Replicas(Splitter):
    """Layers are placed before a call is looked at: a trial works on them where they are."""

    session: Places = field(kw_only=True)

    @contextmanager
    def checking(self, subject: Subject, flat: Sequence[Any]) -> Iterator[None]:
        """Replicas look at rows of their own, and need not look equally long. Copies of what was written to are dropped."""
        with super().checking(subject, flat), self.session.channel.uncounted():
            yield
        forget()

    def split(self, subject: Subject, batch_dim: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.session.place_before(subject.module, args, kwargs)
        try:
            return super().split(subject, batch_dim, args, kwargs)
        finally:
            if self.local_batchnorm:  # statistics are evened out where they are, unseen by the other stages
                forget()


class Pieces(Micro):
    """Micro-batches of calls that have a replica's rows. Replicas decide alike, by what they have alike: not by their rows."""

    def call(self, module: nn.Module, args: Any, kwargs: Any, run: Callable[..., Any]) -> Any:
        call = context.running
        if context.record is not None or (call is not None and call.plan is None):
            if call is not None and call.over and self.count != 1:
                self.say(
                    "micro-batches: a cell that works on each replica's own rows (--batch, --loss local) calls its models whole"
                )
            return run(*args, **kwargs)
        return super().call(module, args, kwargs, run)

    def _enough(self, rows: int, count: int) -> bool:
        call = context.running
        return super()._enough(rows if call is None else min(call.share.sizes), count)

    def _kind(self, leaves: list[Any], tree: Any, rows: int) -> Any:
        call = context.running
        return super()._kind(leaves, tree, rows) if call is None else call.plan

    def _find(self, *call: Any) -> list[int] | None:
        with context.reading_unseen():
            return super()._find(*call)

    def _ignored(self, leaves: list[Any]) -> bool:
        with context.reading_unseen():
            return super()._ignored(leaves)

    def _strange(self, ways: set[int], known: Known) -> bool:
        """In a split call that is seen at its end, for all replicas together."""
        return context.running is None and super()._strange(ways, known)

    def _agreed(self, layout: list[int] | None, why: str) -> tuple[list[int] | None, str]:
        found = everywhere((layout, why))
        reasons = [why for _, why in found if why]
        if not reasons and any(other != found[0] for other in found):
            reasons.append("replicas join its pieces in different ways")
        return (None, reasons[0]) if reasons else found[0]

    def _try(self, module: nn.Module, given: list[Tensor], run: Callable[[], Any]) -> Any:
        call = context.running
        if call is None:
            return super()._try(module, given, run)

        def counted() -> Any:
            before = call.ranks.counts["inside"]
            with channel().uncounted():  # by their rows replicas may go ways that are not equally long
                result = run()
            if call.ranks.counts["inside"] != before:
                raise Whole("it takes means over the rows of all replicas")
            return result

        return super()._try(module, given, counted)


def everywhere(value: Any) -> list[Any]:
    """The small value of every rank of the mesh."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
