"""Micro-batches: a model's call is made in M pieces of its rows, so that the stages on different ranks overlap.

    rank 0   f1 f2 f3 f4 .. b4 b3 b2 b1          every rank runs all pieces in this order; a stage starts on a piece
    rank 1      f1 f2 f3 f4 b4 b3 b2 b1          as soon as it arrives (GPipe's schedule)

The first call of each kind is made whole and in pieces, without gradients, and compared; then a few of its rows with gradients.
Where pieces would change the result the model is called whole, and a line says why. A call that goes another way than those before,
by the operations that it runs, is put back and treated as the first of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nbpar.errors import Unsupported
from nbpar.parallel.data.memory import GIVES_BACK, OUTSIDE, Own, show
from nbpar.parallel.data.zeros import HIDDEN, Dependence, Watch

from .backward import Backward, near
from .cores import Cores
from .dispatch import Dispatch
from .failures import together
from .joining import WEIGHT, join, layout_of
from .operands import tensors
from .pace import Pace
from .trial import Before, Whole, known_to_mix, no_trace, nothing_is_zero

Call = Callable[..., Any]
MOST_WAYS = 64  # that calls of a kind may go
COUNTS = (1, 2, 4, 8)  # of pieces, that `auto` tries


@dataclass
class Known:
    """Of a kind of call. layout: how its pieces' outputs are joined, None if it is made whole. ways: that its pieces have gone."""

    layout: list[int] | None
    ways: set[int] = field(default_factory=set)


class Micro:
    """Calls models in `count` pieces, 0 for as many as are quickest. dispatch: asked whether a call reads values into
    Python. say: takes a line."""

    def __init__(self, count: int, dispatch: Dispatch, say: Callable[[str], None], cores: Cores) -> None:
        self.count, self.dispatch, self.say, self.cores = count, dispatch, say, cores
        self._known: WeakKeyDictionary[nn.Module, dict[Any, Known]] = WeakKeyDictionary()
        self._paces: WeakKeyDictionary[nn.Module, Pace[int]] = WeakKeyDictionary()

    def call(self, module: nn.Module, args: Any, kwargs: Any, run: Call) -> Any:
        """run(*args, **kwargs) is the model's call."""
        with self.dispatch.recorded():  # what is done here besides is no part of the way that a program goes
            result, ways = self._call(module, args, kwargs, run)
        self.dispatch.note(frozenset(ways))
        return result

    def _call(self, module: nn.Module, args: Any, kwargs: Any, run: Call) -> tuple[Any, set[int]]:
        """The call's result, and the ways that it went."""
        leaves, tree = tree_flatten((args, kwargs))
        rows = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 0)
        count = self.count or self._quickest(module)
        if count < 2 or not self._enough(rows, count):
            return self._at_once(module, args, kwargs, run)
        pieces = _pieces(leaves, tree, rows, count)
        key = count, module.training, torch.is_grad_enabled(), self._kind(leaves, tree, rows)
        kinds = self._known.setdefault(module, {})
        if key not in kinds:
            kinds[key] = Known(self._find(module, args, kwargs, pieces, run))
        known = kinds[key]
        if known.layout is not None and WEIGHT in known.layout and self._ignored(leaves):
            self.say(f"micro-batches: {type(module).__name__} is called whole where labels are negative: a loss may ignore them")
            return self._at_once(module, args, kwargs, run)
        while known.layout is not None:
            before = Before(module)
            results, ways = self._made(module, pieces, run)
            if not self._strange(ways, known):
                known.ways |= ways
                return join(results, known.layout, _shares(rows, count)), ways
            if not before.put_back():
                raise Unsupported(
                    f"{type(module).__name__} writes to its weights or buffers, as it did not before. Type `--micro 1`."
                )
            known.layout = self._find(module, args, kwargs, pieces, run) if len(known.ways) < MOST_WAYS else None
            known.ways |= ways
        if not self.count:
            self._paces[module].settle(1)
        return self._at_once(module, args, kwargs, run)

    def _made(self, module: nn.Module, pieces: Sequence[Any], run: Call) -> tuple[list[Any], set[int]]:
        """The pieces' results, and the ways that they went."""
        results, ways = [], set()
        with self.dispatch.late.pieces(module, len(pieces)) as begin:
            for number, (a, k) in enumerate(pieces):
                begin(number)
                self.cores.begin(module, number, len(pieces))
                with self.dispatch.recorded() as way:
                    results.append(run(*a, **k))
                ways.add(hash(tuple(way)))
        return results, ways

    def _strange(self, ways: set[int], known: Known) -> bool:
        """Whether the pieces went ways that are not known to be right. Alike on all ranks."""
        return bool(known.ways) and not ways <= known.ways

    def _quickest(self, module: nn.Module) -> int:
        pace = self._paces.setdefault(module, Pace(COUNTS))
        known, count = pace.chosen, pace.way()
        if pace.chosen and not known:
            measured = ", ".join(f"{way}: {seconds * 1e3:.0f} ms" for way, seconds in pace.best.items())
            self.say(f"micro-batches of {type(module).__name__}: {count} (measured a step, {measured})")
        return count

    def _at_once(self, module: nn.Module, args: Any, kwargs: Any, run: Call) -> tuple[Any, set[int]]:
        self.cores.begin(module, 0, 1)
        with self.dispatch.recorded() as way:
            result = run(*args, **kwargs)
        return result, {hash(tuple(way))}

    def _enough(self, rows: int, count: int) -> bool:
        return rows >= count

    def _ignored(self, leaves: list[Any]) -> bool:
        """Whether there are labels that a loss may leave out of its mean."""
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.int64 and bool((leaf < 0).any()) for leaf in leaves[1:])

    def _kind(self, leaves: list[Any], tree: Any, rows: int) -> Any:
        """What a layout depends on. The number of rows too: a program may go by it."""
        return rows, tree, tuple(_kind(leaf, rows) for leaf in leaves)

    def _find(self, module: nn.Module, args: Any, kwargs: Any, pieces: list[Any], run: Call) -> list[int] | None:
        """How to join the pieces' outputs; None where they do not make the whole."""
        layout: list[int] | None = None
        why = ""
        try:
            known_to_mix(module)
            given = list(tensors((args, kwargs)))
            with torch.no_grad(), nothing_is_zero(module):
                whole = self._try(module, given, lambda: _with_no_zeros(module, given, lambda: run(*args, **kwargs)))
                parts = self._try(module, given, lambda: [run(*a, **k) for a, k in pieces])
            rows = next(value.shape[0] for value in given if value.dim())
            layout = layout_of(whole, parts, _shares(rows, len(pieces)))
            if WEIGHT in layout:
                self._with_holes(module, args, kwargs, len(pieces), run)
        except Whole as reason:
            layout, why = None, str(reason)
        layout, why = self._agreed(layout, why)
        if layout is not None and torch.is_grad_enabled():
            try:
                self._same_gradients(module, *tree_flatten((args, kwargs)), len(pieces), Backward(run, layout))
            except Whole as reason:
                layout, why = None, str(reason)
            layout, why = self._agreed(layout, why)
        if why:
            self.say(f"micro-batches: {type(module).__name__} is called whole, as {why}")
        return layout

    def _with_holes(self, module: nn.Module, args: Any, kwargs: Any, count: int, run: Call) -> None:
        """The same with zeros in the arguments: a mean over what a mask leaves is not a mean over rows. Raises Whole."""
        leaves, tree = tree_flatten((args, kwargs))
        rows = next(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())
        pieces = _pieces([_pierced(leaf) if _rows(leaf, rows) else leaf for leaf in leaves], tree, rows, count)
        args, kwargs = tree_unflatten([_pierced(leaf) if _rows(leaf, rows) else leaf for leaf in leaves], tree)
        given = list(tensors((args, kwargs)))
        try:
            with torch.no_grad(), nothing_is_zero(module):
                whole = self._try(module, given, lambda: run(*args, **kwargs))
                parts = self._try(module, given, lambda: [run(*a, **k) for a, k in pieces])
        except Whole:
            return  # it does not take zeros
        try:
            layout_of(whole, parts, _shares(rows, count))
        except Whole:
            raise Whole("its result is a mean over some entries (a mask?), which pieces share unevenly") from None

    def _same_gradients(self, module: nn.Module, leaves: list[Any], tree: Any, count: int, call: Backward) -> None:
        """Of a few rows. Raises Whole where pieces give other gradients than these rows at once: code of the program's own may run
        in a backward pass (hooks, functions with a `backward`), and what is detached from it does not show in the outputs."""
        rows = next(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())
        few = min(rows, 2 * count + 1)
        some = [_apart(leaf[:few] if _rows(leaf, rows) else leaf) for leaf in leaves]
        targets = [value for value in (*module.parameters(), *tensors(some)) if value.requires_grad]
        whole, pieces = [tree_unflatten(some, tree)], _pieces(some, tree, few, count)
        with nothing_is_zero(module):
            one = self._try(module, [], lambda: call.gradients(whole, [1.0], targets))
            other = self._try(module, [], lambda: call.gradients(pieces, _shares(few, count), targets))
        if not near(one, other):
            raise Whole("a backward pass through its pieces gives other gradients")

    def _agreed(self, layout: list[int] | None, why: str) -> tuple[list[int] | None, str]:
        """The layout, or None and a reason."""
        return layout, why

    def _try(self, module: nn.Module, given: list[Tensor], run: Callable[[], Any]) -> Any:
        """A run that leaves no trace. Raises Whole if it would, on all ranks alike."""

        def tried() -> Any:
            reads = self.dispatch.reads
            with no_trace(module, given), self.dispatch.recorded():
                result = run()
                read = self.dispatch.reads != reads
            if read:
                raise Whole("it reads values into Python")
            return result

        try:
            return together(self.dispatch, tried)
        except Whole:
            raise
        except Exception as error:
            if OUTSIDE in str(error):
                raise Whole(OUTSIDE) from None
            known = str(error).removeprefix("Whole: ")  # on another rank
            raise Whole(known if known != str(error) else f"a trial in pieces fails ({type(error).__name__}: {error})") from error


def _with_no_zeros(module: nn.Module, given: list[Tensor], run: Callable[[], Any]) -> Any:
    """run(). Raises Whole where a factor that is zero may hide something, and where rows in pieces would be copies."""
    rows = Dependence(given, module.parameters())
    with Watch(rows, Own((*given, *module.parameters(), *module.buffers()))):
        result = run()
    if rows.hidden:
        raise Whole(HIDDEN)
    if show(tensors(result), given):
        raise Whole(GIVES_BACK)
    return result


def _pierced(leaf: Tensor) -> Tensor:
    """Some entries are zero."""
    chance = torch.Generator().manual_seed(11)
    return torch.where(torch.rand(leaf.shape, generator=chance) > 0.3, leaf.detach(), torch.zeros_like(leaf))


def _pieces(leaves: Sequence[Any], tree: Any, rows: int, count: int) -> list[Any]:
    cut = [_rows(leaf, rows) for leaf in leaves]
    parts = [leaf.tensor_split(count) if c else (leaf,) * count for leaf, c in zip(leaves, cut, strict=True)]
    return [tree_unflatten([part[i] for part in parts], tree) for i in range(count)]


def _shares(rows: int, count: int) -> list[float]:
    sizes = [len(part) for part in np.array_split(np.arange(rows), count)]
    return [size / rows for size in sizes]


def _apart(leaf: Any) -> Any:
    """The same, but of no graph."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _rows(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == rows


def _kind(leaf: Any, rows: int) -> Any:
    """Of an argument: which dimensions are the batch, not how long the others are."""
    if isinstance(leaf, Tensor):
        return leaf.dtype, tuple(size == rows for size in leaf.shape)
    return leaf if isinstance(leaf, (int, float, str, bool, type(None))) else type(leaf)
