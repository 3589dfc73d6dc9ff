"""Large outputs are gathered when somebody looks at them, and not at all if only their loss is asked for.

To gather the logits of a large vocabulary takes longer than to average all gradients. So a large output leaves its call as a
`Rows`: a tensor of the whole shape whose data are not there yet. A few functions (views, losses, `argmax`) are done on this
rank's rows; any other function first has the rows gathered, after which the tensor is like any other. Its autograd node is the
border's from the start, so nothing about gradients depends on when, or whether, it is gathered.

Where ranks may part ways (a cell asks for its rank), everything is gathered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet, ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_iter

from nbpar.errors import Unsupported
from nbpar.parallel.data.border import Enter, Leave, LeaveNumber, LeaveSame
from nbpar.parallel.data.context import Call
from nbpar.parallel.data.gradients import AHEAD_OF_DATA, TOO_LATE
from nbpar.parallel.data.layouts import Layout
from nbpar.parallel.data.losses import denominator
from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.inner import Inner

LARGE = 1 << 20  # bytes of the whole tensor
ROWS_FIRST = Layout(0)


class Lazy:
    """The Rows of a cell. on: whether outputs may wait."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.on = True
        self.made = 0
        self.alive: WeakSet[Rows] = WeakSet()

    def leave(self, local: Tensor, layout: Layout, call: Call) -> Tensor:
        """An output of a split call, gathered now or later."""
        nbytes = local.numel() * local.element_size() // call.share.count * call.share.rows
        plain = local.is_floating_point() and local.layout == torch.strided and not torch.is_inference_mode_enabled()
        if not self.on or nbytes < LARGE or layout != ROWS_FIRST or not plain:
            return Leave.apply(local, layout, call)
        return self.rows(local, call)

    def rows(self, local: Tensor, call: Call, origin: Origin | None = None) -> Rows:
        tensor = Wait.apply(local, call)
        tensor.__class__ = Rows
        self.made += 1
        tensor._pending = Pending(self, self.made, local, call, origin, origin.base._pending.kin if origin and origin.view else [])
        tensor._pending.kin.append(ref(tensor))
        self.alive.add(tensor)
        return tensor

    def ask(self) -> None:
        """Ranks may part ways from here on."""
        self.on = False
        self.gather_all()

    def cut_short(self) -> bool:
        """The cell has failed, and ranks may be anywhere: what is not gathered becomes this rank's rows. Whether anything was."""
        waiting = [tensor for tensor in self.alive if unsettled(tensor)]
        for tensor in waiting:
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                tensor.data = tensor._pending.local.detach()
            tensor.plain()
        return bool(waiting)

    def gather_all(self) -> None:
        """Gather what every rank still has, as plain tensors. Collective."""
        if not self.made:
            return
        mine = {tensor._pending.serial: tensor for tensor in self.alive if type(tensor) is Rows}
        common = set(mine).intersection(*self.ranks.objects(sorted(mine)))
        for serial in sorted(common):
            tensor = mine[serial]
            tensor.settle()
            if type(tensor) is Rows:
                tensor.plain()
        for tensor in self.alive:
            vars(tensor).pop(AHEAD_OF_DATA, None)


class Wait(Inner):
    """`Leave` of rows, but for the data."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, call: Call) -> Tensor:
        ctx.call = call
        shape = ROWS_FIRST.whole_shape(local, call.share)
        empty = torch.empty_strided(shape, (0,) * len(shape), dtype=local.dtype, device=local.device)
        empty.as_strided((), ()).fill_(float("nan"))  # seen by no program, unless it evades torch's functions
        return empty

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.call.reached()
        return Enter.apply(grad, ROWS_FIRST, ctx.call) * ctx.call.ranks.size, None


class Through(LeaveSame):
    """From one split call into the next: Leave and Enter cancel each other."""

    entrance = True


@dataclass(frozen=True)
class Origin:
    """What a Rows is made from; if it is a view, it has the same memory once there is any."""

    base: Rows
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    view: bool


@dataclass
class Pending:
    """What a Rows stands for. kin: all tensors that share its memory."""

    lazy: Lazy
    serial: int
    local: Tensor
    call: Call
    origin: Origin | None
    kin: list[Any] = field(default_factory=list)
    settled: bool = False


class Rows(Tensor):
    """A tensor whose data may not be there yet."""

    _pending: Pending

    def settle(self) -> None:
        """Have the data. Collective, if they are not there."""
        pending = self._pending
        if pending.settled:
            return
        origin = pending.origin
        if origin is not None:
            origin.base.settle()
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            if origin is None:
                self.data = ROWS_FIRST.gather(pending.local.detach(), pending.call.share, pending.call.ranks)
            else:
                self.data = origin.function(origin.base.data, *origin.args, **origin.kwargs)
        pending.settled = True
        if sum(one() is not None for one in pending.kin) == 1:
            self.plain()

    def plain(self) -> None:
        """Become like any other tensor."""
        del self._pending
        self.__class__ = Tensor  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in GLANCES:
            first = args[0] if args else None
            if type(first) is Rows and not first._pending.settled and function in AHEAD:
                result = AHEAD[function](function, first, args[1:], kwargs)
                if result is not None:
                    setattr(first, AHEAD_OF_DATA, True)
                    return result
            for value in tree_iter((args, kwargs)):
                if type(value) is Rows:
                    guard(function, value)
                    value.settle()
            if getattr(function, "__name__", "") in ("__reduce_ex__", "__deepcopy__"):
                args = (args[0].as_subclass(Tensor), *args[1:])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)


def guard(function: Any, tensor: Rows) -> None:
    """What the shortcuts taken so far make impossible. Raises Unsupported."""
    name = getattr(function, "__name__", "")
    if name in ("retain_grad", "register_hook") and hasattr(tensor, AHEAD_OF_DATA):
        raise Unsupported(TOO_LATE)
    in_place = (name.endswith("_") and not name.startswith("__")) or name in ("__setitem__", "__iadd__", "__isub__", "__imul__")
    if in_place and torch.is_grad_enabled() and sum(one() is not None for one in tensor._pending.kin) > 1:
        raise Unsupported("A large output is changed in place through a view. Take a copy first: `logits = model(x).clone()`.")


def unsettled(value: Any) -> Pending | None:
    """The rows that a tensor stands for, if they are not gathered."""
    return value._pending if type(value) is Rows and not value._pending.settled else None


# Functions on this rank's rows. Each gets (function, tensor, the other arguments) and gives a result, or None to decline.


def alike(  # noqa: PLR0917
    function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any], local_args: Any = None, view: bool = False
) -> Rows:
    """The function of the rows, still not gathered. view: it shares the tensor's memory."""
    pending = tensor._pending
    local = function(pending.local, *(args if local_args is None else local_args), **kwargs)
    return pending.lazy.rows(local, pending.call, Origin(tensor, function, args, kwargs, view))


def alike_view(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows:
    return alike(function, tensor, args, kwargs, view=True)


def reshaped(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows | None:
    sizes = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
    if kwargs or not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    share, rest = tensor._pending.call.share, 1
    for size in sizes[1:]:
        rest *= size
    first = sizes[0] if sizes[0] != -1 else (tensor.numel() // rest if rest > 0 else 0)
    if rest <= 0 or first * rest != tensor.numel() or first % share.rows:
        return None
    local = (first // share.rows * share.count, *sizes[1:])
    return alike(function, tensor, args, kwargs, local if args is sizes else (local,), view=True)


def cast(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows | None:
    """Other types; also `contiguous`, since what is gathered is contiguous."""
    if kwargs or not all(isinstance(arg, torch.dtype) for arg in args) or (function is Tensor.to and not args):
        return None
    local = function(tensor._pending.local, *args)
    return tensor if local.dtype == tensor.dtype else alike(function, tensor, args, kwargs)


def other_dims(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows | None:
    """Functions of dimensions, none of which is that of the rows."""
    dims = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, int) and not isinstance(arg, bool)]
    fine = dims and len(dims) == len(args) + len(kwargs) and all(dim % tensor.dim() for dim in dims)
    return alike(function, tensor, args, kwargs, view=True) if fine else None


def normalised(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows | None:
    """softmax and the like."""
    dim = kwargs.get("dim", args[0] if args else None)
    known = set(kwargs) <= {"dim", "_stacklevel"} or kwargs.get("dtype") is None
    return alike(function, tensor, args, kwargs) if isinstance(dim, int) and dim % tensor.dim() and known else None


def indexed(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows | None:
    index = args[0] if isinstance(args[0], tuple) else (args[0],)
    plain = all(item is Ellipsis or type(item) in (int, slice) for item in index)
    whole_rows = index[:1] == (slice(None),) or (index[:1] == (Ellipsis,) and len(index) <= tensor.dim())
    return alike(function, tensor, args, kwargs, view=True) if plain and whole_rows else None


def found(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """argmax and argmin: a small result, gathered at once."""
    dim = kwargs.get("dim", args[0] if args else None)
    if not isinstance(dim, int) or dim % tensor.dim() == 0:
        return None
    pending = tensor._pending
    return Leave.apply(function(pending.local, *args, **kwargs), ROWS_FIRST, pending.call)


def loss(  # noqa: PLR0917
    function: Any,
    tensor: Rows,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    **more: Any,
) -> Tensor | None:
    """Of this rank's rows, divided by what all rows count."""
    labels = isinstance(target, Tensor) and type(target) is not Rows and not target.is_floating_point()
    if not labels or tensor.dim() < 2 or target.dim() == 0 or target.shape[0] != tensor.shape[0]:
        return None
    if size_average is not None or reduce is not None:
        return None
    pending = tensor._pending
    call = pending.call
    own = ROWS_FIRST.cut(target, call.share)
    if reduction == "none":
        values = function(pending.local, own, weight, ignore_index=ignore_index, reduction="none", **more)
        return Leave.apply(values, ROWS_FIRST, call)
    total = function(pending.local, own, weight, ignore_index=ignore_index, reduction="sum", **more)
    if reduction == "mean":
        total = total / denominator(target, weight, ignore_index).to(total.dtype)
    return LeaveNumber.apply(total, 1.0, call)


def apply_loss(function: Any, tensor: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return loss(function, tensor, *args, **kwargs)


AHEAD: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape), reshaped),
    **dict.fromkeys((Tensor.float, Tensor.double, Tensor.to, Tensor.contiguous), cast),
    **dict.fromkeys((Tensor.transpose, torch.transpose), other_dims),
    **dict.fromkeys((F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax), normalised),
    **dict.fromkeys((Tensor.argmax, torch.argmax, Tensor.argmin, torch.argmin), found),
    **dict.fromkeys((F.cross_entropy, F.nll_loss), apply_loss),
    Tensor.__getitem__: indexed,
    Tensor.detach: alike_view,
}


def getters(names: Sequence[str]) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names}


# What can be said of a Rows without its data.
GLANCES: set[Any] = {
    *getters(("shape", "dtype", "device", "requires_grad", "grad_fn", "is_leaf", "ndim", "layout", "_version", "is_cuda", "grad")),
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.is_floating_point, Tensor.is_complex,
    Tensor.element_size, Tensor.__hash__, Tensor.is_inference,
}  # fmt: skip
