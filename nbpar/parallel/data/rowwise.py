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
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.data import context
from nbpar.parallel.data.counts import Notes
from nbpar.parallel.data.layouts import Share
from nbpar.parallel.data.memory import walk
from nbpar.parallel.data.state import equal

Shape = tuple[int, ...]
shape_of: Callable[[Tensor], Shape] = torch._C.TensorBase.shape.__get__  # type: ignore[attr-defined]  # programs see another


class Unknown(Exception):
    """Operators do not show that rows are apart."""


@dataclass(frozen=True, slots=True)
class Step:
    """An operator that ran: its tensors are kept, so that each has an id of its own. given: with None for tensors."""

    function: Any
    given: tuple[Any, ...]
    ins: list[tuple[Tensor, Shape]]
    outs: list[tuple[Tensor, Shape]]

    @property
    def name(self) -> str:
        return name_of(self.function)


@functools.cache
def name_of(function: Any) -> str:
    """An operator's name, without the mark of one that works in place; with the namespace if it is not torch's own."""
    if isinstance(function, str):
        return function
    space, _, name = function._schema.name.partition("::")
    return name.rstrip("_") if space == "aten" else function._schema.name


def shaped(value: Any) -> list[tuple[Tensor, Shape]]:
    return [(item, tuple(shape_of(item))) for item in walk(value) if isinstance(item, Tensor)]


def given(value: Any) -> Any:
    """An operator's arguments without their tensors."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, list | tuple):
        return tuple(given(item) for item in value)
    return tuple(sorted((name, given(item)) for name, item in value.items())) if isinstance(value, dict) else value


def logged(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operator, and notes it where that is asked for."""
    log = context.log
    if log is None:
        return function(*args, **kwargs)
    ins = shaped((args, kwargs))
    result = function(*args, **kwargs)
    log.append(Step(function, (given(args), given(kwargs)), ins, shaped(result)))
    return result


def argument(step: Step, name: str) -> Any:
    """By name, or its default."""
    args, kwargs = step.given
    for at, declared in enumerate(step.function._schema.arguments):
        if declared.name == name:
            return args[at] if at < len(args) else dict(kwargs).get(name, declared.default_value)
    return None


@dataclass(frozen=True)
class Rows:
    """Where a tensor has its rows. dim is (outer, rows, inner) flattened."""

    dim: int
    outer: int = 1


class Follow:
    """Follows rows through two runs. rows: by the ids of the whole run's tensors; None for those without."""

    def __init__(self, share: Share, known: Iterable[tuple[Tensor, Rows | None]]) -> None:
        self.share = share
        self.rows: dict[int, Rows | None] = {id(tensor): rows for tensor, rows in known}

    def differs(self, whole: Shape, local: Shape) -> int | None:
        """The dimension with the rows, if there is one."""
        if len(whole) != len(local):
            raise Unknown
        dims = [dim for dim, (a, b) in enumerate(zip(whole, local, strict=True)) if a != b]
        if not dims:
            return None
        dim = dims[0]
        times, rest = divmod(whole[dim], self.share.rows)
        if len(dims) > 1 or rest or local[dim] != times * self.share.count or 0 in whole:
            raise Unknown("sizes do not follow the number of rows")
        return dim

    def step(self, whole: Step, local: Step) -> None:
        if whole.function is not local.function and whole.function != local.function:
            raise Unknown(f"other operators for fewer rows: {whole.name} and {local.name}")
        if len(whole.ins) != len(local.ins) or len(whole.outs) != len(local.outs):
            raise Unknown(whole.name)
        ins = [self.taken(one, other) for one, other in zip(whole.ins, local.ins, strict=True)]
        dims = [self.differs(one[1], other[1]) for one, other in zip(whole.outs, local.outs, strict=True)]
        name = whole.name
        with_rows = [rows for rows in ins if rows is not None]
        if whole.given != local.given and numbers(whole) != numbers(local):
            raise Unknown(f"{name} is given other numbers for fewer rows")
        if with_rows or any(dim is not None for dim in dims):
            outers = {rows.outer for rows in with_rows} or {1}
            rule = RULES.get(name) or (alongside if is_pointwise(whole.function) else None)
            if rule is None or (with_rows and None in dims) or not rule(whole, ins, dims):
                raise Unknown(f"{name} may mix rows")
            if len(outers) > 1 or (name in DRAWS and outers != {1}):
                raise Unknown(f"{name} joins rows in another order")
            made = [] if with_rows else [shape[dim] for (_, shape), dim in zip(whole.outs, dims, strict=True) if dim is not None]
            if any(length != self.share.rows for length in made):
                raise Unknown(f"{name} makes rows in an unknown order")
        elif name == "lift_fresh" and not all(equal(a, b) for (a, _), (b, _) in zip(whole.outs, local.outs, strict=True)):
            raise Unknown("a number is made of the number of rows")
        outer = with_rows[0].outer if with_rows else 1
        for (tensor, shape), dim in zip(whole.outs, dims, strict=True):
            if dim is not None and name in RESHAPES:
                outer = self.reshaped(whole.ins[0][1], ins[0], shape, dim)
            self.rows[id(tensor)] = None if dim is None else Rows(dim, outer)

    def taken(self, whole: tuple[Tensor, Shape], local: tuple[Tensor, Shape]) -> Rows | None:
        """Where an operator's tensor has its rows."""
        dim, key = self.differs(whole[1], local[1]), id(whole[0])
        known = self.rows.get(key)
        if dim is None:
            if known is not None or (key not in self.rows and whole[0] is not local[0] and not equal(whole[0], local[0])):
                raise Unknown("a tensor of unknown origin")
            return None
        if known is None or known.dim != dim:
            raise Unknown("rows of unknown origin")
        return known

    def reshaped(self, before: Shape, rows: Rows | None, after: Shape, dim: int) -> int:
        if rows is None:
            raise Unknown("rows of unknown origin")
        ahead, rest = divmod(size(before[: rows.dim]) * rows.outer, size(after[:dim]))
        if rest or (after[dim] // self.share.rows) % ahead:
            raise Unknown("rows are seen in another order")
        return ahead


def size(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def is_pointwise(function: Any) -> bool:
    return torch.Tag.pointwise in getattr(function, "tags", ()) and function._schema.name.startswith("aten::")


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


def apart(step: Step, ins: Sequence[Rows | None], dims: Sequence[int | None]) -> bool:
    """Along dimensions that are given, and none of which is that of the rows, which all tensors have in the same place."""
    rows = {rows.dim if rows is not None else None for rows in ins}
    along = argument(step, "dim")
    along = argument(step, "dims") if along is None else along
    if len(rows) != 1 or None in rows or along is None or along == ():
        return False
    length = len(step.ins[0][1])
    return not rows & {dim % length for dim in (along if isinstance(along, tuple) else (along,))}


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
    own = at(ins, 0)
    masks = [rows for rows in ins[3:] if rows is not None]
    here = own is not None and own < len(step.ins[0][1]) - 2 and own == at(ins, 1) == at(ins, 2) == dims[0]
    return here and all(rows.dim == own for rows in masks) and all(len(shape) == len(step.ins[0][1]) for _, shape in step.ins[3:])


def at(ins: Sequence[Rows | None], place: int) -> int | None:
    rows = ins[place]
    return None if rows is None else rows.dim


def _names(text: str) -> list[str]:
    return text.split()


RESHAPES = frozenset(_names("view _unsafe_view reshape _reshape_alias"))
MOVES = _names("transpose permute t unsqueeze squeeze expand detach alias clone")
UNIFORM = _names("zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty")
DRAWS = frozenset(_names("bernoulli normal uniform rand randn rand_like randn_like exponential native_dropout"))
RULES: dict[str, Rule] = {
    **dict.fromkeys((*RESHAPES, *MOVES), anywhere),
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
SIZES = frozenset(("size", "shape", "stride", "N"))
SIZED = frozenset((*RESHAPES, *UNIFORM, "expand", "native_group_norm", "rand", "randn"))


def numbers(step: Step) -> Any:
    """What an operator is given beside tensors, without sizes."""
    if step.name not in SIZED:
        return step.given
    args, kwargs = step.given
    declared = step.function._schema.arguments
    kept = tuple(None if declared[at].name in SIZES else arg for at, arg in enumerate(args))
    return kept, tuple((name, value) for name, value in kwargs if name not in SIZES)


def follow(
    whole: Sequence[Step], local: Sequence[Step], share: Share, known: Iterable[tuple[Tensor, Rows | None]], notes: Notes
) -> dict[int, Rows | None]:
    """Where the whole run's tensors have their rows, by id. Raises Unknown."""
    followed = Follow(share, known)
    if len(whole) != len(local):
        raise Unknown("other operators for fewer rows")
    for one, other in zip(whole, local, strict=True):
        followed.step(one, other)
    if notes.odd:
        raise Unknown(notes.odd)
    for decided in notes.decisions:
        own, against = ([is_rows(of, followed.rows) for of in dimensions] for dimensions in decided)
        if any(own) != any(against):
            raise Unknown("Python decides by the number of rows")
    return followed.rows


def is_rows(of: tuple[int, int], rows: dict[int, Rows | None]) -> bool:
    if of[0] not in rows:
        return True  # it may be
    known = rows[of[0]]
    return known is not None and known.dim == of[1]


TORCHS_OWN = re.compile(r"(Backward\d+|^CopyBackwards|^CopySlices|^AccumulateGrad)$")


def opaque(roots: Iterable[Tensor]) -> bool:
    """Whether a backward pass runs code that is not torch's own."""
    stack = [tensor.grad_fn for tensor in roots if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, torch._C._FunctionBase) or not TORCHS_OWN.search(type(node).__name__):
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return False
