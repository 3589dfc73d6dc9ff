"""What an operation does on sharded tensors. Called below autograd, so that backward passes come by here too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map

from .ranks import MAX, ranks
from .sharded import Sharded, Shards, Step, alias, layout

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
aten = torch.ops.aten
DENSE = (None, torch.preserve_format, torch.contiguous_format)


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = RULES.get(func)
    if rule is None:
        rule = RULES[func] = classify(func)
    return rule(func, args, kwargs)


def classify(func: Any) -> Rule:
    returned = [result.alias_info for result in func._schema.returns]
    tensors = all(str(result.type) == "Tensor" for result in func._schema.returns)
    if torch.Tag.inplace_view in func.tags:
        return moved
    if torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags and tensors:
        return elementwise
    if func._schema.name.startswith(("aten::_foreach_", "aten::_fused_")):
        return shard_by_shard
    if returned and all(alias is not None and not alias.is_write for alias in returned):
        return view
    return on_wholes


# ---- on the whole -----------------------------------------------------------------------------------------------------------


def on_wholes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gather what it needs, run it on every rank, and keep this rank's shards of what it changed."""
    whole = Wholes(set())
    return whole.run(func, args, kwargs)


def fills(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument is overwritten, so that its value is not needed."""
    target = args[0]
    whole = Wholes({id(target._shards)} if isinstance(target, Sharded) and not target._path else set())
    return whole.run(func, args, kwargs)


class Wholes:
    """Whole values of the sharded tensors of one operation. Views of one memory are views of one whole."""

    def __init__(self, unread: set[int]) -> None:
        self.unread = unread
        self.memories: dict[int, Tensor] = {}
        self.origin: dict[int, Sharded] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain_args, plain_kwargs = tree_map(self.plain, (args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        for target in changed(func, args, kwargs):
            if isinstance(target, Sharded):
                target._shards.wrote_whole(self.memories[id(target._shards)])
                target.touched()
        return tree_map(lambda leaf: self.origin.get(id(leaf), leaf), result)

    def plain(self, leaf: Any) -> Any:
        if not isinstance(leaf, Sharded):
            return leaf
        shards = leaf._shards
        memory = self.memories.get(id(shards))
        if memory is None:
            unread = id(shards) in self.unread and shards.part is not None
            memory = shards.data.new_empty(shards.shape) if unread else shards.value()
            self.memories[id(shards)] = memory
        for step in leaf._path:
            memory = step(memory)
        self.origin[id(memory)] = leaf
        return memory


_CHANGED: dict[Any, tuple[tuple[int, str], ...]] = {}


def changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to; lists are unfolded."""
    places = _CHANGED.get(func)
    if places is None:
        written = [(k, a.name) for k, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        places = _CHANGED[func] = tuple(written)
    found: list[Any] = []
    for place, name in places:
        value = args[place] if place < len(args) else kwargs.get(name)
        found += value if isinstance(value, (list, tuple)) else [value]
    return found


# ---- views ------------------------------------------------------------------------------------------------------------------


def view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value, *rest = args
    if not isinstance(value, Sharded):
        return on_wholes(func, args, kwargs)
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    result = func(like, *rest, **kwargs)
    if isinstance(result, Tensor):
        return Sharded(value._shards, (*value._path, Step(func, tuple(rest), kwargs)), result, value._quiet)
    steps = [Step(func, tuple(rest), kwargs, index) for index in range(len(result))]
    return [Sharded(value._shards, (*value._path, step), one, value._quiet) for step, one in zip(steps, result, strict=True)]


def moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In-place views (`t_`): the tensor's own shape changes, and its path is one step longer."""
    value, *rest = args
    step = getattr(getattr(aten, func._schema.name.removeprefix("aten::").removesuffix("_")), func._overloadname)
    with no_dispatch():
        func(value, *rest, **kwargs)
    value._path = (*value._path, Step(step, tuple(rest), kwargs))
    return value


def same_view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return alias(args[0])


# ---- shard by shard ---------------------------------------------------------------------------------------------------------


def agreed(values: Sequence[Any], strides_count: bool) -> Shards | None:
    """How the tensors of an elementwise operation are split, if they can be taken shard by shard: sharded ones are
    made to be split as the first, others broadcast to them. strides_count: whether the result takes its strides from them."""
    first: Shards | None = None
    for value in values:
        if isinstance(value, Sharded):
            shards = layout(value)
            if shards is None or (first is not None and shards.shape != first.shape):
                return None
            first = first or shards
            shards.turn(first.dim)
    if first is None:
        return None
    shape = first.shape
    for value in values:
        if not isinstance(value, Tensor) or isinstance(value, Sharded):
            continue
        if value.dim() > len(shape) or any(value.shape[-k] not in (1, shape[-k]) for k in range(1, value.dim() + 1)):
            return None
        if strides_count and value.dim() == len(shape) and not value.is_contiguous() and 0 not in value.stride():
            return None
    return first


def mine(value: Any, shards: Shards) -> Any:
    """This rank's part of an operand."""
    if isinstance(value, Sharded):
        return value._shards.part
    if not isinstance(value, Tensor):
        return value
    dim = shards.dim - len(shards.shape) + value.dim()
    return ranks().cut(value, dim) if dim >= 0 and value.shape[dim] == shards.shape[shards.dim] else value


def like(part: Tensor, shards: Shards, *others: Any) -> Sharded:
    kept = shards.kept or any(isinstance(other, Sharded) and other._shards.kept for other in others)
    return Sharded(Shards(part.contiguous(), shards.dim, shards.shape, kept=kept))


def wrote_part(value: Sharded) -> None:
    value._shards.wrote_part()
    value.touched()


def elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    targets = changed(func, args, kwargs)
    values = (*args, *kwargs.values())
    if any(isinstance(value, (list, tuple)) for value in values) or kwargs.get("memory_format") not in DENSE:
        return on_wholes(func, args, kwargs)
    shards = agreed(values, strides_count=not targets)
    if shards is None or any(target is not args[0] or not isinstance(target, Sharded) for target in targets):
        return on_wholes(func, args, kwargs)
    result = func(*(mine(value, shards) for value in args), **{name: mine(value, shards) for name, value in kwargs.items()})
    if targets:
        wrote_part(args[0])
        return args[0]
    if isinstance(result, Tensor):
        return like(result, shards, *values)
    return tuple(like(one, shards, *values) for one in result)


def factory(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`*_like` without random numbers."""
    shards = layout(args[0])
    if shards is None or kwargs.get("memory_format") not in DENSE or kwargs.get("layout") not in (None, torch.strided):
        return on_wholes(func, args, kwargs)
    return like(func(shards.part, *args[1:], **kwargs), shards)


def new(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`new_*`: only shape, dtype and device of the first argument count."""
    value, size, *rest = args
    shards = layout(value)
    dense = func is not aten.new_empty_strided.default or tuple(rest[0]) == value.stride()
    if shards is None or tuple(size) != tuple(value.shape) or not dense:
        return func(torch.empty(0, dtype=value.dtype, device=value.device), size, *rest, **kwargs)
    if func is aten.new_empty_strided.default:
        func, rest = aten.new_empty.default, rest[1:]
    assert shards.part is not None
    return like(func(shards.part, shards.part.shape, *rest, **kwargs), shards)


def shard_by_shard(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Lists of tensors, elementwise position by position."""
    lists = [
        value
        for value in (*args, *kwargs.values())
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)
    ]
    layouts = []
    written = {id(target) for target in changed(func, args, kwargs)}
    for position in range(max(map(len, lists))):
        there = [values[position] for values in lists if position < len(values)]
        shards = agreed(there, strides_count=not written)
        mixed = shards is not None and any(id(v) in written and v.dim() and not isinstance(v, Sharded) for v in there)
        if mixed or (shards is None and any(isinstance(value, Sharded) for value in there)):
            return on_wholes(func, args, kwargs)
        layouts.append(shards)

    def local(value: Any) -> Any:
        if any(value is one for one in lists):
            return [mine(item, shards) if shards else item for item, shards in zip(value, layouts, strict=False)]
        return value

    result = func(*map(local, args), **{name: local(value) for name, value in kwargs.items()})
    for one in lists:
        for value in one:
            if isinstance(value, Sharded) and id(value) in written:
                wrote_part(value)
    if not result:
        return result
    if written:
        return lists[0]
    return [like(part, shards) if shards else part for part, shards in zip(result, layouts, strict=True)]


# ---- reductions -------------------------------------------------------------------------------------------------------------


def total(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    shards = layout(args[0])
    if shards is None:
        return on_wholes(func, args, kwargs)
    return ranks().all_reduce(func(shards.part, **kwargs))


def norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """linalg_vector_norm(self, ord=2, dim=None, keepdim=False, *, dtype=None) over all elements."""
    value, order, *rest = (*args, 2)[: max(2, len(args))]
    shards = layout(value)
    if shards is None or order not in ORDERS or any(rest) or kwargs.get("dim") or kwargs.get("keepdim"):
        return on_wholes(func, args, kwargs)
    return together([func(shards.part, order, **kwargs)], order)[0]


def norms(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """_foreach_norm(self, ord=2, dtype=None): one all-reduce for all."""
    values, order, *rest = (*args, 2)[: max(2, len(args))]
    found = [layout(value) for value in values]
    if order not in ORDERS or any(shards is None and isinstance(v, Sharded) for shards, v in zip(found, values, strict=True)):
        return on_wholes(func, args, kwargs)
    parts = func([v if shards is None else shards.part for shards, v in zip(found, values, strict=True)], order, *rest, **kwargs)
    split = [k for k, shards in enumerate(found) if shards is not None]
    for k, value in zip(split, together([parts[k] for k in split], order), strict=True):
        parts[k] = value
    return parts


ORDERS = (1, 2, float("inf"))


def together(parts: Sequence[Tensor], order: float) -> list[Tensor]:
    """Norms of whole tensors from the norms of their shards."""
    flat = torch.stack([part.to(parts[0].dtype) for part in parts])
    if order == float("inf"):
        flat = ranks().all_reduce(flat, MAX)
    elif order == 1:
        flat = ranks().all_reduce(flat)
    else:
        flat = ranks().all_reduce(flat.square()).sqrt()
    return [value.to(part.dtype) for value, part in zip(flat.unbind(), parts, strict=True)]


def unscale(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """_amp_foreach_non_finite_check_and_unscale_(self, found_inf, inv_scale)."""
    values, found, inverse = args
    if isinstance(found, Sharded) or any(isinstance(value, Sharded) and layout(value) is None for value in values):
        return on_wholes(func, args, kwargs)
    func([value._shards.part if isinstance(value, Sharded) else value for value in values], found, inverse)
    for value in values:
        if isinstance(value, Sharded):
            wrote_part(value)
    found.copy_(ranks().all_reduce(found, MAX))
    return None


RULES: dict[Any, Rule] = {
    aten.detach.default: same_view,
    aten.alias.default: same_view,
    aten.sum.default: total,
    aten.linalg_vector_norm.default: norm,
    aten._foreach_norm.Scalar: norms,
    aten._foreach_max.default: on_wholes,
    aten._amp_foreach_non_finite_check_and_unscale_.default: unscale,
    **dict.fromkeys((aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default), factory),
    **dict.fromkeys((aten.new_empty.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default), new),
    aten.new_empty_strided.default: new,
    **dict.fromkeys(
        (
            aten.copy_.default, aten._to_copy.default, aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor,
            aten.threshold_backward.default, aten.leaky_relu_backward.default, aten.elu_backward.default,
            aten.hardtanh_backward.default, aten.softplus_backward.default,
        ),
        elementwise,  # though torch does not call them so
    ),
    **dict.fromkeys(
        (aten.bernoulli_.float, aten.uniform_.default, aten.normal_.default, aten.exponential_.default, aten.random_.default), fills
    ),
}  # fmt: skip
