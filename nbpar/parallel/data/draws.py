"""Random draws inside a split call are the whole batch's, of which each rank keeps its rows.

So dropout and noise equal those of one process, and all ranks leave the random stream where one process leaves it. Which
dimension of a draw has the rows is seen by comparing a whole call's draws with a split one's: `Record`, then `Replay`. On later
calls `Whole` draws.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data import context
from nbpar.parallel.data.answers import Answers
from nbpar.parallel.data.context import Call, Stopped
from nbpar.parallel.data.layouts import Layout, Share
from nbpar.parallel.data.memory import Own, Writes, is_strided, tensors
from nbpar.parallel.data.operators import operator
from nbpar.parallel.data.rowwise import NEW, logged
from nbpar.parallel.data.zeros import Dependence
from nbpar.parallel.model.table import READING_OPERATORS
from nbpar.uncompiled import Mode

# Draws whose use of the stream depends on the values of other rows: rejection sampling, fused kernels.
UNCUTTABLE = {"_standard_gamma", "_sample_dirichlet", "poisson", "binomial", "rrelu_with_noise", "rrelu_with_noise_", "randperm"}


WRITES = f"{NEW}: it writes to its weights"


def is_draw(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    known = operator(function)
    if not known.seeded or on_meta(args, kwargs):
        return False
    if "attention" in known.name:  # tagged, but at dropout 0 it draws nothing
        return bool(argument(function, "dropout_p", args, kwargs))
    # Seen under inference_mode, where torch does not take such operators apart.
    return all(argument(function, name, args, kwargs) is not False for name in ("train", "training"))


def on_meta(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether nothing is drawn, as there are no values to draw."""
    return getattr(kwargs.get("device"), "type", "") == "meta" or any(isinstance(arg, Tensor) and arg.is_meta for arg in args)


def argument(function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator's argument by name, or its default."""
    if name in kwargs:
        return kwargs[name]
    for at, declared in enumerate(function._schema.arguments):
        if declared.name == name:
            return args[at] if at < len(args) else declared.default_value
    return None


def short(function: Any) -> str:
    return operator(function).name


@dataclass(frozen=True)
class Drawn:
    """One draw of a whole call: the operator, and the tensors that it gave."""

    name: str
    results: tuple[Tensor, ...]


class Record(Mode):
    """Watches a whole call: keeps its draws, and notes whether Python reads a value that depends on the rows.

    own: what it may write to. writes: to the weights. followed: operators are logged, and will say what depends on the rows: then
    `touched` is what was read. answers: to what it asks of all rows.
    """

    def __init__(
        self, rows: Iterable[Tensor], own: Own, writes: Writes, answers: Answers | None = None, *, followed: bool = False
    ) -> None:
        super().__init__()
        self.own = own
        self.answers = answers
        self.draws: list[Drawn] = []
        self.writes = writes
        self.reads = self.reads_rows = False
        self.touched: list[Tensor] = []
        self._followed = followed
        self.rows = Dependence(rows, writes.tensors)

    def read(self, tensor: Tensor, *, shares: bool = False) -> None:
        """shares: what Python gets is the tensor's memory, not a copy."""
        self.reads = True
        self.writes.seen |= shares and self.writes.holds(tensor)
        self.spare()
        if self._followed:
            self.touched.append(tensor)
        else:
            self.reads_rows |= self.rows.depend(tensor)

    def spare(self) -> None:
        """A look that follows operators has no weights to spare. Raises Stopped before they are written to."""
        if self._followed and self.writes.seen:
            raise Stopped(WRITES)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, given = operator(function), tensors(args, kwargs)
        if known.name in READING_OPERATORS:
            for tensor in given:
                if is_strided(tensor):
                    self.read(tensor)
        if known.written:
            self.own.guard(function, args, kwargs)
            self.writes.see(function, args, kwargs)
            self.spare()
        if not self._followed:
            self.rows.before(function, args, kwargs, given)
        result = logged(function, args, kwargs, given)
        self.own.made(function, given, result)
        if not self._followed:
            self.rows.after(given, result)
        if known.seeded and is_draw(function, args, kwargs):
            self.draws.append(Drawn(known.name, tuple(value.detach().clone() for value in tensors(result))))
        return result


class Ordered(Mode):
    """Knows which draw of its call comes next."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.share, self.at = call.share, 0
        call.draws = self

    @contextmanager
    def once_more(self, at: int) -> Iterator[None]:
        """Draw again what was drawn from that place on."""
        now, self.at = self.at, at
        try:
            with self:
                yield
        finally:
            self.at = now


class Replay(Ordered):
    """In a split call, gives this rank's rows of what a whole call drew. layouts: for each draw, where its rows are."""

    def __init__(self, call: Call, draws: list[Drawn], writes: Writes) -> None:
        super().__init__(call)
        self.draws, self.writes = draws, writes
        self.layouts: list[Layout | None] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = operator(function)
        if known.written:
            self.writes.see(function, args, kwargs)
            if self.writes.seen and context.log is not None:
                raise Stopped(WRITES)
        if not known.seeded or not is_draw(function, args, kwargs):
            return logged(function, args, kwargs)
        at, self.at = self.at, self.at + 1
        if at >= len(self.draws) or self.draws[at].name != short(function):
            raise Unlike("it draws other random numbers for fewer rows")
        result = logged(function, args, kwargs)
        values = tensors(result)
        layout = None
        for value, whole in zip(values, self.draws[at].results, strict=True):
            if value.shape != whole.shape:
                layout = row_dimension(value, whole, self.share)
        if layout and short(function) in UNCUTTABLE:
            raise Unlike(f"it draws with `{short(function)}`, which cannot be cut by rows")
        if at == len(self.layouts):
            self.layouts.append(layout)
        for value, whole in zip(values, self.draws[at].results, strict=True):
            value.copy_(layout.cut(whole, self.share) if layout and value.shape != whole.shape else whole)
        return result


class Whole(Ordered):
    """In a split call, draws for the whole batch from the shared stream and keeps this rank's rows."""

    def __init__(self, call: Call, names: tuple[str, ...], layouts: tuple[Layout | None, ...]) -> None:
        super().__init__(call)
        self.names, self.layouts = names, layouts

    def layout(self, name: str) -> Layout | None:
        """Of the draw that comes next: by its place, or else by its kind."""
        if self.at < len(self.names) and self.names[self.at] == name:
            return self.layouts[self.at]
        kinds = {layout for known, layout in zip(self.names, self.layouts, strict=True) if known == name}
        if len(kinds) != 1:
            raise Stopped
        return kinds.pop()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_draw(function, args, kwargs):
            return function(*args, **kwargs)
        layout = self.layout(short(function))
        self.at += 1
        if layout is None:
            return function(*args, **kwargs)
        return draw_whole(function, args, kwargs, layout, self.share)


def draw_whole(function: Any, args: Any, kwargs: Any, layout: Layout, share: Share) -> Any:
    """Call a random operator with all rows in every argument that has rows; give this rank's."""
    dim, target = layout.dim, args[0] if args and isinstance(args[0], Tensor) else None

    def has_rows(shape: tuple[int, ...] | list[int]) -> bool:
        return len(shape) > dim and shape[dim] > 0 and shape[dim] % (share.count * layout.outer) == 0

    def all_rows(value: Any) -> Any:
        if isinstance(value, Tensor):
            return spread(value, layout, share) if value.dim() and has_rows(value.shape) else value
        if isinstance(value, list | tuple) and value and all(type(size) is int for size in value) and has_rows(value):
            return [size // share.count * share.rows if at == dim else size for at, size in enumerate(value)]
        return value

    whole_args = [all_rows(value) for value in args]
    if all(new is old for new, old in zip(whole_args, args, strict=True)):
        raise Stopped  # a draw without the rows that it had when it was watched
    result = function(*whole_args, **{name: all_rows(value) for name, value in kwargs.items()})
    if function._schema.name.endswith("_"):
        return target.copy_(layout.cut(result, share))  # type: ignore[union-attr]
    if short(function) == "native_dropout":  # the output depends on values of other rows: only its mask is used
        mask = layout.cut(result[1], share)
        return target * mask / (1 - args[1]), mask  # type: ignore[operator]
    if isinstance(result, Tensor):
        return layout.cut(result, share)
    return type(result)(layout.cut(part, share) for part in result)


def spread(local: Tensor, layout: Layout, share: Share) -> Tensor:
    """A tensor of all rows, in the memory order of the local one: own rows in place, the others like the first."""
    dim, shape = layout.dim, list(local.shape)
    shape[dim] = shape[dim] // share.count * share.rows
    order = sorted(range(local.dim()), key=lambda at: (-int(local.stride(at)), at))  # type: ignore[call-overload]
    whole = torch.empty_permuted(shape, order, dtype=local.dtype, device=local.device)
    whole.copy_(local.narrow(dim, 0, 1).expand(shape))
    inner = shape[dim] // (layout.outer * share.rows)
    parts = (layout.outer, share.rows, inner)
    strides = [whole.stride(dim) * share.rows * inner, whole.stride(dim) * inner, whole.stride(dim)]
    view = whole.as_strided(
        [*shape[:dim], *parts, *shape[dim + 1 :]], [*whole.stride()[:dim], *strides, *whole.stride()[dim + 1 :]]
    )
    own = local.reshape(*shape[:dim], layout.outer, share.count, inner, *shape[dim + 1 :])
    view.narrow(dim + 1, share.start, share.count).copy_(own)
    return whole


def row_dimension(local: Tensor, whole: Tensor, share: Share) -> Layout:
    """Where a draw has its rows, by its shapes. Raises Unlike."""
    dims = [at for at in range(min(local.dim(), whole.dim())) if local.shape[at] != whole.shape[at]]
    if len(dims) != 1 or local.dim() != whole.dim() or local.shape[dims[0]] * share.rows != whole.shape[dims[0]] * share.count:
        raise Unlike("it draws random numbers in a shape that does not follow the rows")
    return Layout(dims[0])


class Unlike(Exception):
    """A trial of a split call differs from the whole one; the text says how."""


@dataclass(frozen=True)
class Streams:
    """The states of the random generators that a model may use."""

    torch: Tensor
    cuda: tuple[Tensor, ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> Streams:
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
        numpy = sys.modules.get("numpy")
        return cls(torch.get_rng_state(), cuda, random.getstate(), numpy.random.get_state() if numpy else None)

    def put_back(self) -> None:
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)

    def same_python(self, other: Streams) -> bool:
        """Whether the generators that are not torch's are in the same state."""
        mine, theirs = self.numpy, other.numpy
        numpy_same = (mine is None) == (theirs is None) and (
            mine is None or (mine[2] == theirs[2] and bool((mine[1] == theirs[1]).all()))
        )
        return self.python == other.python and numpy_same


def moved(before: Tensor) -> bool:
    """Whether torch's generator has moved since."""
    return not torch.equal(before, torch.get_rng_state())


# Methods by which Python reads a tensor's value.
READS = ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "numpy")
