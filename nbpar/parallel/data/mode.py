"""Enter and leave mode `data`: what it changes in torch while a cell runs, all of it put back."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as checkpointing

from nbpar.errors import OptionError, suggest
from nbpar.parallel import api, ways
from nbpar.parallel.data import checkpoints, context, losses, norm, onehot, verdicts
from nbpar.parallel.data.call import Splitter
from nbpar.parallel.data.central import updated_on_root
from nbpar.parallel.data.draws import READS
from nbpar.parallel.data.gradients import Gradients
from nbpar.parallel.data.lazy import Lazy
from nbpar.parallel.data.local import LocalGradients, call_of_cell, cell_of_rows
from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.files import new_notes, written_once
from nbpar.parallel.patch import patched
from nbpar.parallel.report import Report


@dataclass(frozen=True)
class Options:
    """batch: names that are batches. batch_dim: where the rows are. aggregate: "allreduce" or "central".
    local_batchnorm: statistics of each rank's rows. loss: "global" or "local"."""

    batch: tuple[str, ...] = ()
    batch_dim: int | None = None
    aggregate: str = "allreduce"
    local_batchnorm: bool = False
    loss: str = "global"

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Options:
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise OptionError(f"%%parallel data has no option {name!r}.{suggest(name, known)}")
        return cls(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@contextmanager
def mode(options: Mapping[str, object], namespace: dict[str, Any], report: Report) -> Iterator[None]:
    """The batch is split over the ranks of torch.distributed's default group."""
    chosen = Options.of(options)
    ranks = Ranks()
    if ranks.size == 1:
        yield
        return
    every = ranks.objects((new_notes() if ranks.rank == 0 else "", streams()))
    in_step = len({state for _, state in every}) == 1
    with written_once(ranks.rank, every[0][0]), splitting(chosen, ranks, namespace, report, in_step=in_step):
        yield


@contextmanager
def splitting(
    chosen: Options,
    ranks: Ranks,
    namespace: dict[str, Any],
    report: Report,
    make: Callable[..., Splitter] = Splitter,
    *,
    in_step: bool = True,
    eager: bool = False,
) -> Iterator[None]:
    """The batch is split over these ranks. in_step: their random states are the same. eager: large outputs are gathered at once."""
    local = bool(chosen.batch) or chosen.loss == "local"
    central = chosen.aggregate == "central"
    gradients = LocalGradients(ranks, central, lambda: call.share.weight) if local else Gradients(ranks, central)
    call = call_of_cell(ranks, gradients, chosen.local_batchnorm)
    lazy = Lazy(ranks)
    lazy.on = not eager
    splitter = make(gradients, report, lazy, chosen.batch_dim, chosen.local_batchnorm)
    with ExitStack() as stack:
        stack.enter_context(gradients.installed())
        if central:
            stack.enter_context(updated_on_root(ranks))
        for owner, name, change in patches(splitter):
            stack.enter_context(patched(owner, name, change))
        if isinstance(gradients, LocalGradients):
            loaders = chosen.loss == "local"
            rows = cell_of_rows(chosen.batch, chosen.batch_dim or 0, loaders, gradients, call, namespace, report)
            stack.enter_context(rows)
        if chosen.local_batchnorm:
            report.say("BatchNorm is over each rank's own rows (--local-batchnorm): results differ from those of one process.")
        stack.enter_context(patched(api, "asked", lambda none: lazy.ask))
        try:
            yield
            lazy.gather_all()
            if in_step and not ranks.agree(True, streams(), 0)[1][0]:
                report.say(OUT_OF_STEP)
        except BaseException:
            if lazy.cut_short():
                report.say(
                    "A large output was not gathered, since the cell failed before anything looked at it: each rank has its rows."
                )
            raise
    splitter.disturb()
    report.details.update(details(splitter))


OUT_OF_STEP = (
    "The ranks ended with different random states: something in this cell draws differently on each of them, so its results may"
    " differ from those of one process"
)


def streams() -> int:
    """A word for the state of the random streams."""
    return zlib.crc32(bytes(torch.get_rng_state().numpy()), zlib.crc32(repr(random.getstate()).encode()))


def patches(splitter: Splitter) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """Where torch is changed: below the names that programs import."""
    yield nn.Module, "__call__", splitter.module
    yield torch, "batch_norm", norm.exact
    yield torch._C._nn, "cross_entropy_loss", losses.counted
    yield torch._C._nn, "nll_loss_nd", losses.counted
    yield torch.nn.functional, "_verify_batch_size", norm.of_all_ranks
    yield torch.nn.functional, "one_hot", onehot.unseen
    yield torch.overrides, "has_torch_function", ways.unseen
    yield checkpointing, "_checkpoint_without_reentrant_generator", checkpoints.kept(splitter.report)
    yield checkpointing, "CheckpointFunction", checkpoints.reentrant(splitter.report)
    for name in READS:
        yield Tensor, name, reading
    yield from verdicts.patches()
    yield api, "splitter", lambda none: splitter.function


def reading(original: Callable[..., Any]) -> Callable[..., Any]:
    """A method that gives a tensor's value to Python."""

    @functools.wraps(original)  # torch knows its methods by name
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if context.busy:
            context.read(self, shares=original.__name__ == "numpy")
        return original(self, *args, **kwargs)

    return method


def details(splitter: Splitter) -> dict[str, Any]:
    return {
        "checks": splitter.checks,
        "check seconds": splitter.check_seconds,
        "check forwards": splitter.check_forwards,
        "calls": {name: dict(counts) for name, counts in splitter.counts.items()},
        "backward passes": splitter.gradients.passes,
        "collectives": dict(splitter.gradients.ranks.counts),
    }
