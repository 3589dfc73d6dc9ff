"""Does a call treat its rows one by one, as its operators say? Where they do, few rows show what any number of rows gives.

A whole run and one with fewer rows are compared operator by operator. Where a tensor has its rows is the dimension in which the
two differ. Every operator must be known to keep rows apart when they are there, and must be given the same in both runs but for
rows. What is not known is not believed: then values decide.

Operators say more than values: it does not matter whether a weight is zero, a mask full or a branch detached from its gradient.
What they do not show is looked at beside them: code that runs in the backward pass, what Python makes of the number of rows, and
memory that is filled by other means.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nbpar.parallel.data import context
from nbpar.parallel.data.context import Stopped
from nbpar.parallel.data.counts import Notes
from nbpar.parallel.data.layouts import Share
from nbpar.parallel.data.memory import NESTED, is_elsewhere, is_strided, tensors
from nbpar.parallel.data.operators import operator
from nbpar.parallel.data.state import equal

Shape = tuple[int, ...]
shape_of: Callable[[Tensor], Shape] = torch._C.TensorBase.shape.__get__  # type: ignore[attr-defined]  # programs see another


FEWER = "on fewer rows"  # a single one may be treated otherwise than several: its memory is contiguous in any order
COUNTED = "it goes by the number or the place of its rows"  # few do not show what many give
NEW = "not known"  # nothing is said about rows


class Unknown(Stopped):
    """Operators do not show that rows are apart."""


class Step(NamedTuple):
    """An operator that ran, or what stands for several. Its tensors are kept, so that each has an id of its own.

    made: of a tensor that Python made, the values.
    """

    function: Any
    name: str
    args: Any
    kwargs: dict[str, Any]
    ins: list[tuple[Tensor, Shape]]
    outs: list[tuple[Tensor, Shape]]
    made: Tensor | None = None


@functools.cache
def name_of(function: Any) -> str:
    """An operator's name, without the mark of one that works in place; with the namespace if it is not torch's own."""
    known = operator(function)
    return known.name.rstrip("_") if known.own else str(function)


def shaped(values: list[Tensor]) -> list[tuple[Tensor, Shape]]:
    try:
        return [(value, shape_of(value)) for value in values]
    except RuntimeError:
        raise Unknown(f"{NEW}: nested tensors") from None


def logged(function: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor] | None = None) -> Any:
    """Runs an operator, and notes it where that is asked for. given: its tensors, where they are known."""
    log = context.log
    if log is None:
        return function(*args, **kwargs)
    name, ins = name_of(function), shaped(tensors(args, kwargs) if given is None else given)
    result = function(*args, **kwargs)
    made = result.clone() if name == "lift_fresh" else None
    log.append(Step(function, name, args, kwargs, ins, shaped(tensors(result)), made))
    return result


def one_step(name: str, function: Callable[..., Any], args: Any, numbers: Any) -> Any:
    """Runs what is known to keep rows apart, whatever it is made of. numbers: of its arguments, what must be alike."""
    log = context.log
    if log is None:
        return function(*args)
    ins = shaped(tensors(args))
    with context.logging(None):
        result = function(*args)
    log.append(Step(None, name, numbers, {}, ins, shaped(tensors(result))))
    return result


def argument(step: Step, name: str) -> Any:
    """By name, or its default."""
    for at, declared in enumerate(step.function._schema.arguments):
        if declared.name == name:
            return step.args[at] if at < len(step.args) else step.kwargs.get(name, declared.default_value)
    return None


@dataclass(frozen=True)
class Rows:
    """Where a tensor has its rows. dim is (outer, rows, inner) flattened."""

    dim: int
    outer: int = 1


# A number made of all rows: their mean or sum.
Number = Literal["mean", "sum"]
PLACES: Literal["places"] = "places"  # 0, 1, 2, …: the place of each row, which is another one in a split run
Way = Rows | Number | Literal["places"] | None


class Log(list[Step]):
    """The operators of a whole run. rows: how many it has, where each rank will have a single one; else 0."""

    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.rows = rows

    def append(self, step: Step) -> None:
        if self.rows and step.name == "clone" and in_order_alone(step.ins[0][0], self.rows):
            raise Unknown(f"{FEWER} it copies nothing")  # known now: the rest of this run would be in vain
        super().append(step)


def in_order_alone(tensor: Tensor, rows: int) -> bool:
    """Whether a tensor's memory is in another order than its dimensions only because there is more than a single row."""
    expected = 1
    for length, stride in zip(reversed(shape_of(tensor)), reversed(tensor.stride()), strict=True):
        if length not in (1, rows):
            if stride not in (expected, expected * rows):
                return False
            expected *= length
    return not tensor.is_contiguous()


class Follow:
    """Follows rows through a run with fewer of them, operator by operator, beside the whole run's log. Raises Unknown.

    rows: by the ids of the whole run's tensors; None for those that do not depend on them.
    """

    def __init__(self, whole: Sequence[Step], share: Share, known: Iterable[tuple[Tensor, Way]]) -> None:
        self.whole, self.total, self.count = whole, share.rows, share.count
        self.dims: dict[tuple[Shape, Shape], int] = {}
        self.local: list[Step] = []  # kept as the whole run's are: torch detaches what a factory gives if somebody else holds it
        self.rows: dict[int, Way] = {id(tensor): rows for tensor, rows in known}
        self.filled: dict[int, Any] = {}  # by storage, what a number made of rows was written to

    def append(self, local: Step) -> None:
        """The operator that ran now."""
        at = len(self.local)
        if at == len(self.whole):
            raise Unknown(f"{FEWER} it runs more operators")
        self.local.append(local)
        self.step(self.whole[at], local)

    def end(self, notes: Notes, read: Iterable[Tensor]) -> None:
        """The run is over. notes, read: of the whole one, what Python made of sizes, and which tensors' values it read."""
        if len(self.local) < len(self.whole):
            raise Unknown(f"{FEWER} it runs fewer operators")
        if notes.odd:
            raise Unknown(f"{NEW}: {notes.odd}")
        for decided in notes.decisions:
            own, against = ([is_rows(of, self.rows) for of in dimensions] for dimensions in decided)
            if sum(own) != sum(against):
                raise Unknown(f"{COUNTED}: Python decides, or calculates, with a size")
        if any(sum(is_rows(of, self.rows) for of in dimensions) > 1 for dimensions in notes.linear):
            raise Unknown(f"{COUNTED}: Python decides, or calculates, with a size")
        if any(is_elsewhere(tensor) or self.way(tensor) is not None for tensor in read):
            raise Unknown("Python reads values of its rows")

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """What had no rows was overwritten with a number made of rows: other views of it do not know."""
        for tensor in tensors:
            if not is_strided(tensor):
                raise Unknown(f"{NEW}: a number made of rows is written to memory that is not followed")
            self.filled[tensor.untyped_storage()._cdata] = tensor

    def way(self, whole: Tensor) -> Way:
        """Where a tensor of the whole run has its rows."""
        known = self.rows.get(id(whole))
        if not self.filled:
            return known
        if not isinstance(known, str) and is_strided(whole) and whole.untyped_storage()._cdata in self.filled:
            raise Unknown("another view of a number made of rows")
        return known

    def differs(self, whole: Shape, local: Shape) -> int | None:
        """The dimension with the rows, if there is one."""
        if whole == local:
            return None
        shapes = whole, local
        dim = self.dims.get(shapes)
        if dim is None:
            dim = self.dims[shapes] = self.found(*shapes)
        return dim

    def found(self, whole: Shape, local: Shape) -> int:
        if len(whole) != len(local):
            raise Unknown(f"{FEWER} tensors have other dimensions")
        dims = [dim for dim, (a, b) in enumerate(zip(whole, local, strict=True)) if a != b]
        dim = dims[0]
        times, rest = divmod(whole[dim], self.total)
        if len(dims) > 1 or rest or local[dim] != times * self.count or 0 in whole:
            raise Unknown(f"{FEWER} sizes do not follow their number")
        return dim

    def step(self, whole: Step, local: Step) -> None:
        if whole.name != local.name or whole.function is not local.function:
            raise Unknown(f"{FEWER} it runs {local.name}, not {whole.name}")
        if len(whole.ins) != len(local.ins) or len(whole.outs) != len(local.outs):
            raise Unknown(whole.name)
        ways = [self.taken(*one, *other) for one, other in zip(whole.ins, local.ins, strict=True)]
        if whole.name == "index" and any(ways) and any(tensor.dtype == torch.bool for tensor, _ in whole.ins[1:]):
            raise Unknown(f"{NEW}: values taken by a mask")
        dims = [self.differs(one[1], other[1]) for one, other in zip(whole.outs, local.outs, strict=True)]
        if not as_given(whole, local):
            self.rows[id(whole.outs[0][0])] = self.counted(whole, local, ways)
            return
        if whole.made is not None and (local.made is None or not equal(whole.made, local.made)):
            raise Unknown(f"{COUNTED}: a tensor is made by it")
        if any(ways) or dims.count(None) < len(dims):
            self.lead(whole, ways, dims)
        else:
            for tensor, _ in whole.outs:
                self.rows[id(tensor)] = None

    def counted(self, whole: Step, local: Step, ways: Sequence[Way]) -> Way:
        """What an operator gives that was given the number of rows. Raises Unknown."""
        if whole.name == "arange" and [given(whole), given(local)] == [(0, self.total, 1), (0, self.count, 1)]:
            return PLACES
        if whole.function is torch.ops.aten.div.Tensor and ways == ["sum"]:
            a, b = whole.args[1], local.args[1]
            if isinstance(a, int) and isinstance(b, int) and b and a * self.count == b * self.total:
                return "mean"
        raise Unknown(f"{COUNTED}: {whole.name} is given a number made of it")

    def lead(self, whole: Step, ways: Sequence[Way], dims: Sequence[int | None]) -> None:
        """From what an operator takes to what it gives."""
        if (whole.name == VERDICT and type(ways[0]) is not str) or (whole.name == TALLY and ways[0] in (None, "sum")):
            self.rows.update((id(tensor), None) for tensor, _ in whole.outs)
            return
        ins = [way if type(way) is Rows else None for way in ways]
        words = [way for way in ways if type(way) is str]
        if PLACES in words:
            self.rows[id(whole.outs[0][0])] = by_places(whole, ways, dims[0])
            return
        number = made_of_all(whole, ways, ins) if dims.count(None) == len(dims) else None
        if number is None:
            if words:
                raise Unknown(f"{whole.name} works on a number made of rows")
            self.apart(whole, ins, dims)
        elif whole.function is not None and operator(whole.function).written:
            self.fill(tensor for tensor, _ in whole.outs if not isinstance(self.rows.get(id(tensor)), str))
        outer = next((rows.outer for rows in ins if rows is not None), 1)
        for (tensor, shape), dim in zip(whole.outs, dims, strict=True):
            if dim is not None and whole.name in RESHAPES:
                outer = self.reshaped(whole.ins[0][1], ins[0], shape, dim)
            self.rows[id(tensor)] = number if dim is None else Rows(dim, outer)

    def apart(self, step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> None:
        """Rows stay apart, and in their order. Raises Unknown."""
        if step.name in TAKES and ins[0] is not None and not apart(step, ins, dims):
            raise Unknown(f"{COUNTED}: it takes some of them ({step.name})")
        rule = RULES.get(step.name) or (alongside if is_pointwise(step.function) else None)
        if rule is None:
            raise Unknown(f"{NEW}: {step.name}")
        if (any(ins) and None in dims and step.name not in UNIFORM) or not rule(step, ins, dims):
            raise Unknown(f"{step.name} may mix rows")
        outers = {rows.outer for rows in ins if rows is not None}
        if not outers:
            sizes = [shape[dim] for (_, shape), dim in zip(step.outs, dims, strict=True) if dim is not None]
            known = step.name == "repeat" or all(length == self.total for length in sizes)
        else:
            known = len(outers) == 1 and (step.name not in DRAWS or outers == {1})
        if not known:
            raise Unknown(f"{step.name} joins rows in another order")

    def taken(self, whole: Tensor, shape: Shape, local: Tensor, its_shape: Shape) -> Way:
        """Where an operator's tensor has its rows."""
        known, key = self.way(whole), id(whole)
        if known is None and whole is local and shape == its_shape:
            return None
        dim = self.differs(shape, its_shape)
        if (known.dim if isinstance(known, Rows) else 0 if known == PLACES else None) != dim:
            raise Unknown("rows of unknown origin")
        if known is None and whole is not local and key not in self.rows and not equal(whole, local):
            raise Unknown("a tensor of unknown origin")
        return known

    def reshaped(self, before: Shape, rows: Rows | None, after: Shape, dim: int) -> int:
        if rows is None:
            raise Unknown("rows of unknown origin")
        ahead, rest = divmod(size(before[: rows.dim]) * rows.outer, size(after[:dim]))
        if rest or (after[dim] // self.total) % ahead:
            raise Unknown("rows are seen in another order")
        return ahead


def size(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def is_pointwise(function: Any) -> bool:
    known = None if function is None else operator(function)
    return known is not None and known.own and known.pointwise


def made_of_all(step: Step, ways: Sequence[Way], ins: Sequence[Rows | None]) -> Number | None:
    """What kind of number an operator makes of all rows, or of other such numbers."""
    kinds: set[Number] = {way for way in ways if way in {"mean", "sum"}}
    if not kinds:
        if step.name in ("mean", "sum") and any(ins):
            return "mean" if step.name == "mean" else "sum"
        return LOSSES[step.name] if step.name in LOSSES and by_row(step, ins, ()) else None
    if any(ins) or len(kinds) > 1:
        return None
    kind = kinds.pop()
    if step.name == "copy" and ways[0] is None:
        return kind
    if step.name == "lerp" and kind == "mean" and len(ways) == 2:
        return kind
    if step.name in PASSES or (step.name in ("add", "sub") and (kind == "mean" or None not in ways) and len(ways) == 2):
        return kind
    return kind if step.name in ("mul", "div") and ways[0] == kind and not any(ways[1:]) else None


def by_places(step: Step, ways: Sequence[Way], dim: int | None) -> Way:
    """What an operator makes of the places of rows: of each row, what its own indices name. Raises Unknown."""
    if step.name in ("unsqueeze", "detach", "alias") and dim == 0:
        return PLACES
    if step.name in ("index", "index_put") and dim == 0 and ways[0] == Rows(0):
        count = len(step.args[1])
        indices, (_, shape) = step.ins[1 : count + 1], step.ins[0]
        most = max(len(other) for _, other in indices)
        every = len(indices) == count and ways[1] == PLACES and shape[0] == indices[0][1][0]
        value = step.name == "index" or (ways[count + 1] is None and step.ins[count + 1][0].numel() == 1)
        if (every and value) and all(
            index.dtype == torch.int64 and (rows is None or (rows in (PLACES, Rows(0)) and len(other) == most))
            for (index, other), rows in zip(indices, ways[1 : count + 1], strict=True)
        ):
            return Rows(0)
    raise Unknown(f"{COUNTED}: {step.name} is told the places")


def given(step: Step) -> tuple[Any, Any, Any]:
    """What numbers are made, by an `arange` of integers."""
    start, end, by = (argument(step, name) for name in ("start", "end", "step"))
    return start or 0, end, by or 1


# Losses, as one step. Means are over labels that count, whoever has them.
LOSS, LOSS_SUM, LOSS_EACH = "cross_entropy", "cross_entropy, sum", "cross_entropy, each"
LOSSES: dict[str, Number] = {LOSS: "mean", LOSS_SUM: "sum"}
VERDICT, TALLY = "verdict", "verdict by number"  # on all rows, or how many of them; told to all ranks: see `verdicts`
NOTHING = (0,)  # the shape of what `cat` passes over
# Rules say whether rows stay apart, given where the tensors have their rows and where the results have them.
Rule = Callable[[Step, Sequence["Rows | None"], Sequence["int | None"]], bool]


def alongside(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Broadcast against each other: rows are in the same dimension, counted from the last."""
    ends = {rows.dim - len(shape) for rows, (_, shape) in zip(ins, step.ins, strict=True) if rows is not None}
    ends |= {dim - len(shape) for dim, (_, shape) in zip(dims, step.outs, strict=True) if dim is not None}
    return len(ends) == 1


def anywhere(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    return True


def uniform(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Made with the same value, or no value yet, everywhere."""
    return True


def apart(step: Step, ins: Sequence[Rows | None], results: Sequence[int | None]) -> bool:
    """Along dimensions that are given, and none of which is that of the rows, which all tensors have in the same place."""
    rows = {rows.dim if rows is not None else None for rows, (_, shape) in zip(ins, step.ins, strict=True) if shape != NOTHING}
    along = argument(step, "dim")
    along = argument(step, "dims") if along is None else along
    dims = along if isinstance(along, list | tuple) else [] if along is None else [along]
    length = max(len(shape) for _, shape in step.ins)
    return len(rows) == 1 and None not in rows and bool(dims) and not rows & {dim % length for dim in dims}


def stacked(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Along a new dimension."""
    return len({rows.dim if rows is not None else None for rows in ins}) == 1


def picked(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """By rows of indices, from what has no rows."""
    return ins[0] is None and not argument(step, "scale_grad_by_freq")


def along_others(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """index_select: other dimensions, by indices without rows; or from what has none, rows of indices."""
    if ins[0] is None:
        return True
    return ins[1] is None and argument(step, "dim") % len(step.ins[0][1]) != ins[0].dim


def first(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Images and the like: rows first, and weights without."""
    return at(ins, 0) == 0 and all(rows is None for rows in ins[1:]) and dims[0] == 0


def normalised(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Over the last dimensions."""
    own, last = ins[0], argument(step, "normalized_shape")
    return own is not None and own.dim < len(step.ins[0][1]) - len(last) and all(rows is None for rows in ins[1:])


def product(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Of two matrices, or of batches of them, perhaps added to something: no sum runs over rows."""
    *added, one, other = ins
    a, b, last = at([one], 0), at([other], 0), len(step.outs[0][1]) - 1
    if added and added[0] is not None and added[0].dim - len(step.ins[0][1]) != (dims[0] or 0) - last - 1:
        return False
    if a is not None and b is not None:
        return last == 2 and a == b == dims[0] == 0
    if a is not None:
        return a == dims[0] == last - 1
    return b is not None and b == dims[0] == last


def linear(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    return ins[0] is not None and ins[0].dim == dims[0] != len(step.ins[0][1]) - 1 and all(rows is None for rows in ins[1:])


def attention(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Batches or heads: in one of the first two dimensions of queries, keys and values; masks with rows have them there too."""
    own, length = at(ins, 0), len(step.ins[0][1])
    here = own is not None and own < length - 2 and own == at(ins, 1) == at(ins, 2) == dims[0]
    masks = [rows.dim - len(shape) for rows, (_, shape) in zip(ins[3:], step.ins[3:], strict=True) if rows is not None]
    return here and all(end == dims[0] - length for end in masks)  # type: ignore[operator]


def by_row(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Losses: rows of predictions and of labels."""
    return at(ins, 0) == at(ins, 1) == 0 and ins[0] == ins[1] and not any(ins[2:]) and all(dim == 0 for dim in dims)


def repeated(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """What has no rows, as often for each row; or rows that stay as many."""
    (_, before), (_, after), own, dim = step.ins[0], step.outs[0], ins[0], dims[0]
    if own is None or dim is None:
        return dim is not None
    return own.dim - len(before) == dim - len(after) and before[own.dim] == after[dim]


def put(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """One value where a mask is on that has the rows where they are."""
    (mask,) = step.args[1] if len(step.args[1]) == 1 else (None,)
    here = isinstance(mask, Tensor) and mask.dtype == torch.bool and len(ins) == 3 and ins[0] is not None
    return here and ins[1] == ins[0] and ins[2] is None and step.ins[2][0].numel() == 1


def channels(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """BatchNorm of rows that are channels, each by itself, as `F.instance_norm` calls it."""
    own = len(step.ins[0][1]) > 2 and at(ins, 0) == 1 and dims[0] == 1
    return own and argument(step, "training") and all(rows is None or rows.dim == 0 for rows in ins[1:])


def windows(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    own = ins[0]
    return own is not None and own.dim == dims[0] != argument(step, "dimension") % len(step.ins[0][1])


def strided(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """The same memory, each row a part of its own, as when images are pooled to one pixel that keeps channels last."""
    tensor, shape = step.ins[0]
    length, inner = size(shape[1:]), sum((n - 1) * by for n, by in zip(step.args[1][1:], step.args[2][1:], strict=True))
    alone = tensor.untyped_storage().nbytes() == size(shape) * tensor.element_size()
    return ins[0] == Rows(0) and dims[0] == 0 and alone and len(step.args) == 3 and step.args[2][0] == length > inner


def at(ins: Sequence[Rows | None], place: int) -> int | None:
    rows = ins[place]
    return None if rows is None else rows.dim


def _names(text: str) -> list[str]:
    return text.split()


RESHAPES = frozenset(_names("view _unsafe_view reshape _reshape_alias"))
MOVES = _names("transpose permute t unsqueeze squeeze expand detach alias clone")
UNIFORM = _names("zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty")
TAKES = frozenset(_names("slice select split split_with_sizes unsafe_split unsafe_split_with_sizes"))
DRAWS = frozenset(_names("bernoulli normal uniform rand randn rand_like randn_like exponential native_dropout"))
PASSES = frozenset((*RESHAPES, *MOVES, "neg", "_to_copy"))
RULES: dict[str, Rule] = {
    **dict.fromkeys((*RESHAPES, *MOVES, "view_as_complex", "view_as_real"), anywhere),
    **dict.fromkeys(UNIFORM, uniform),
    **dict.fromkeys(_names("copy fill zero _to_copy _prelu_kernel hardswish log_sigmoid_forward masked_fill"), alongside),
    **dict.fromkeys(DRAWS, alongside),
    **dict.fromkeys(_names("""
        _softmax _log_softmax _safe_softmax cumsum cumprod sort topk glu flip roll sum mean amax amin max min argmax argmin any all
        prod var std var_mean std_mean logsumexp linalg_vector_norm norm cat select slice split split_with_sizes
        unsafe_split unsafe_split_with_sizes unbind gather scatter scatter_add
    """), apart),
    **dict.fromkeys(_names("embedding index"), picked),
    "stack": stacked,
    "repeat": repeated,
    "index_put": put,
    "unfold": windows,
    "as_strided": strided,
    "native_batch_norm": channels,
    LOSS_EACH: by_row,
    "index_select": along_others,
    **dict.fromkeys(_names("""
        convolution native_group_norm batch_norm max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d
        adaptive_max_pool2d max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
        upsample_bilinear2d upsample_bicubic2d reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
        constant_pad_nd pixel_shuffle pixel_unshuffle
    """), first),
    **dict.fromkeys(_names("native_layer_norm _fused_rms_norm"), normalised),
    **dict.fromkeys(_names("mm addmm bmm baddbmm"), product),
    "linear": linear,
    **dict.fromkeys(_names("_scaled_dot_product_flash_attention_for_cpu"), attention),
}  # fmt: skip
# Arguments of these that may be numbers of rows.
SIZES = frozenset(("size", "shape", "stride", "N", "repeats"))
SIZED = frozenset((*RESHAPES, *UNIFORM, "as_strided", "expand", "repeat", "native_group_norm", "rand", "randn", "normal"))


def as_given(whole: Step, local: Step) -> bool:
    """Whether two runs gave an operator the same, but for tensors and sizes."""
    args, others, kwargs, theirs = whole.args, local.args, whole.kwargs, local.kwargs
    if whole.name in SIZED:
        declared = declared_by(whole.function)
        args, others = ([v for name, v in zip(declared, given, strict=False) if name not in SIZES] for given in (args, others))
        kwargs, theirs = ({name: v for name, v in given.items() if name not in SIZES} for given in (kwargs, theirs))
    return alike(args, others) and (kwargs == {} == theirs or alike(kwargs, theirs))


@functools.cache
def declared_by(function: Any) -> tuple[str, ...]:
    """The names of an operator's arguments."""
    return tuple(argument.name for argument in function._schema.arguments)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors aside."""
    if one is other:
        return True
    if isinstance(one, Tensor):
        return isinstance(other, Tensor)
    if isinstance(one, NESTED):
        return isinstance(other, NESTED) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    return bool(one == other)


def is_rows(of: tuple[int, int], rows: dict[int, Way]) -> bool:
    if of[0] not in rows:
        return True  # it may be
    known = rows[of[0]]
    return isinstance(known, Rows) and known.dim == of[1]


TORCHS_OWN = re.compile(r"(Backward\d+|^CopyBackwards|^CopySlices|^AccumulateGrad)$")


@functools.cache
def torchs_own(node: str) -> bool:
    return TORCHS_OWN.search(node) is not None


def opaque(roots: Iterable[Tensor]) -> bool:
    """Whether a backward pass runs code that is not torch's own."""
    stack = [tensor.grad_fn for tensor in roots if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, torch._C._FunctionBase) or not torchs_own(type(node).__name__):
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return False
