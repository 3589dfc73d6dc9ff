"""`--batch NAMES` and `--loss local`: the whole cell works on this rank's rows, as in a DDP script.

The cell is one long call: BatchNorm and means over labels are still those of all ranks. Modules are not split, since what they
get has been cut. Gradients of every leaf are summed over ranks, weighted by rows; random streams are put in step at each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from nbpar.errors import Unsupported
from nbpar.parallel.data import context, norm
from nbpar.parallel.data.attempt import word
from nbpar.parallel.data.batch import bound
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.gradients import Gradients, average, walk
from nbpar.parallel.data.layouts import Layout, Share
from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.patch import patched
from nbpar.parallel.report import Report

DIFFERS = (
    "what is computed from them (losses, metrics, printed values) is each rank's own, and `mean(0)`, `std(0)` or `var(0)` over the"
    " batch are over a rank's rows. A module or a function marked with `@nbpar.split`, without this option, gives whole values"
)


class LocalGradients(Gradients):
    """Sums every leaf's gradient over ranks at the end of a pass, weighted by the rows of the batch."""

    def __init__(self, ranks: Ranks, central: bool, weight: Callable[[], float]) -> None:
        super().__init__(ranks, central)
        self.weight, self.inside = weight, False

    @contextmanager
    def installed(self) -> Iterator[None]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                return original(*args, **kwargs) if self.inside else self._summed(original, args, kwargs)

            return run

        with patched(torch.autograd, "_engine_run_backward", make):
            yield

    def _summed(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The whole loss is the weighted sum of the ranks': the weight enters at the top, before BatchNorm's sums."""
        self.inside, self.passes = True, self.passes + 1
        outputs, tops, _, create, inputs = args[:5]
        weight = self.weight() * self.ranks.size  # an average follows
        args = (outputs, tuple(None if top is None else top * weight for top in tops), *args[2:])
        try:
            if kwargs.get("accumulate_grad", False):
                self._accumulate(original, args, kwargs, create)
                return ()
            results = original(*args, **kwargs)
            average([g for g, t in zip(results, inputs, strict=True) if g is not None and t.grad_fn is None], self.ranks)
            return tuple(
                g / self.ranks.size if g is not None and t.grad_fn is not None else g for g, t in zip(results, inputs, strict=True)
            )
        finally:
            self.inside = False

    def _accumulate(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], create: bool) -> None:
        roots = [output for output in args[0] if isinstance(output, Tensor)]
        leaves = list({id(leaf): leaf for leaf in walk(roots, 0).leaves}.values())
        before = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        try:
            original(*args, **kwargs)
            self._agree(leaves)
            with torch.no_grad():
                average([leaf.grad for leaf in leaves if leaf.grad is not None], self.ranks, self.central)
        finally:
            for leaf, grad in zip(leaves, before, strict=True):
                if grad is not None:
                    new, leaf.grad = leaf.grad, grad
                    if new is not None:
                        leaf.grad = grad + new if create else grad.add_(new.detach())

    def _agree(self, leaves: Sequence[Tensor]) -> None:
        got = sorted((tuple(leaf.shape), leaf.grad is not None) for leaf in leaves)
        if not self.ranks.agree(True, word(got), 0)[1][0]:
            raise Unsupported("Ranks have gradients for different tensors. Run this cell without --batch and --loss local.")


class Batches:
    """Cuts batches, and knows the share of the last one."""

    def __init__(self, ranks: Ranks, dim: int, call: Call) -> None:
        self.ranks, self.layout, self.call = ranks, Layout(dim), call
        self.cuts = 0

    def rows(self, value: Any) -> Any:
        """This rank's rows of every tensor in a value; the value itself if it has fewer rows than there are ranks."""
        torch.set_rng_state(self._first(torch.get_rng_state()))
        if self.call.local_batchnorm:
            norm.even_out(self.call)
        return self._cut(value)

    def _cut(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            cut = [self._cut(item) for item in value]
            return type(value)(*cut) if hasattr(value, "_fields") else type(value)(cut)
        if isinstance(value, dict):
            return {key: self._cut(item) for key, item in value.items()}
        if not isinstance(value, Tensor) or value.dim() <= self.layout.dim or value.shape[self.layout.dim] < self.ranks.size:
            return value
        self.cuts += 1
        self.call.share = Share(self.ranks.sizes(value.shape[self.layout.dim]), self.ranks.rank)
        return self.layout.cut(value, self.call.share)

    def _first(self, state: Tensor) -> Tensor:
        dist.broadcast(state, 0)
        return state


@contextmanager
def cell_of_rows(  # noqa: PLR0917
    names: Sequence[str], dim: int, loaders: bool, gradients: LocalGradients, call: Call, namespace: dict[str, Any], report: Report
) -> Iterator[None]:
    """names: batches, by name. loaders: what DataLoaders give is cut too."""
    batches = Batches(gradients.ranks, dim, call)

    def iterating(original: Callable[..., Any]) -> Callable[..., Any]:
        def iterate(loader: Any) -> Iterator[Any]:
            return map(batches.rows, original(loader))

        return iterate

    what = ", ".join(names) or "Batches"
    report.say(f"{what} are this rank's rows: {DIFFERS}.")
    with ExitStack() as stack:
        stack.enter_context(bound(names, batches.rows, namespace))
        if loaders:
            stack.enter_context(patched(DataLoader, "__iter__", iterating))
        stack.enter_context(context.inside(call))
        yield
    if call.local_batchnorm:
        norm.even_out(call)
    torch.set_rng_state(batches._first(torch.get_rng_state()))
    if not batches.cuts:
        report.say("Nothing was cut: every rank worked on the whole. Name what holds a batch: `--batch Xb,yb`.")


def call_of_cell(ranks: Ranks, gradients: Gradients, local_batchnorm: bool) -> Call:
    """Before the first batch, every rank has all of everything: one part in N each."""
    return Call(Share((1,) * ranks.size, ranks.rank), ranks, gradients, over=True, local_batchnorm=local_batchnorm)
