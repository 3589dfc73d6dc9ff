"""Every torch function of the cell comes by here and runs where its operands live.

The mode stands above autograd, so that each rank builds the same graph: real on the owner, meta elsewhere. It is off
while a backward pass runs (meta kernels written in Python would come by here again) and on inside the hooks that people
register.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nbpar.errors import Unsupported
from nbpar.parallel.ways import step

from . import special, table
from .channel import channel
from .draws import drawn_within, draws_nothing, is_packed, redraw, redraw_within
from .early import Early
from .failures import Failures, zeros
from .home import owner, pinned, shared, wrote
from .late import Late
from .operands import numbers, own, plain_number, plain_slices, tensors
from .remote import tell_size
from .transfer import bring

if TYPE_CHECKING:
    from .optimisers import Step

Function = Callable[..., Any]


@dataclass
class Call:
    """One call of a torch function. operands: the tensors among its arguments."""

    func: Function
    name: str
    args: Any
    kwargs: dict[str, Any]
    operands: list[Tensor]

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)


class Dispatch(TorchFunctionMode):
    """Runs operations where their operands live. `reads` counts what Python reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.early: Early | None = None
        self.late = Late()
        self.on_change: Callable[[Any], None] | None = None  # told the results of what changes buffers
        self.failures: Failures | None = None  # while something is tried
        self.step: Step | None = None  # that an optimiser makes
        self.way: list[Hashable] | None = None  # what runs, by name, while somebody wants to know
        self._dtypes: dict[object, tuple[torch.dtype, ...]] = {}

    @contextmanager
    def recorded(self) -> Iterator[list[Hashable]]:
        """The names of what runs inside, alike on all ranks: which way a program goes."""
        outer, self.way = self.way, []
        try:
            yield self.way
        finally:
            self.way = outer

    def note(self, what: Hashable) -> None:
        if self.way is not None:
            self.way.append(what)

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.step is not None and self.step.goes_on() and self.step.plain:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "backward":
            return special.backward(func, args, kwargs)
        if name in ("register_hook", "register_post_accumulate_grad_hook"):
            return special.register(func, *args)
        operands = [args[0]] if name == "__get__" else tensors((args, kwargs))
        if not operands:
            made = func(*args, **kwargs)
            if name in table.FROM_MEMORY:
                shared(made)
            return made
        if self.way is not None:
            self.way.append(step(name, args, kwargs))
        if name in table.VALUE:
            self.reads += 1
        if torch._C._functorch.peek_interpreter_stack() is not None:
            special.refuse_functorch(operands)
            return func(*args, **kwargs)
        owners = {owner(value) for value in operands}
        if owners == {None}:
            self._changes(func, name, args, kwargs, operands)
            return func(*args, **kwargs)
        channel().operations += 1
        if name == "__get__":
            return special.get_property(func, args[0])
        return self._run(Call(func, name, args, kwargs, operands))

    @staticmethod
    def _changes(func: Function, name: str, args: Any, kwargs: dict[str, Any], operands: list[Tensor]) -> None:
        """What all ranks have may have been copied to one where it is needed with its graph: that copy is stale then."""
        if name in table.TO_MEMORY:
            shared(operands[0])
        elif table.may_write(func, name, args, kwargs):
            for value in operands:
                wrote(value)

    def _run(self, call: Call) -> Any:
        func, name, args, kwargs = call.func, call.name, call.args, call.kwargs
        if name == "__set__":
            return special.set_property(func, *args)
        if name == "grad" and func is torch.autograd.grad:
            return special.grad(func, args, kwargs)
        if name.startswith(("_foreach_", "_fused_")):
            return special.foreach(func, name, args, kwargs)
        if name == "_amp_foreach_non_finite_check_and_unscale_":
            return special.unscale(func, *args)
        kind = table.KINDS.get(name)
        if kind is None:
            raise Unsupported(
                f"torch's {name!r} on a value that one rank holds: not known to be safe; "
                "compute it on a copy that all ranks have, torch.tensor(value.tolist())"
            )
        if kind == "known":
            return func(*args, **kwargs)
        if kind == "show":
            return special.show(func, args, kwargs, call.operands[0])
        if kind == "read":
            return special.read(func, name, args, kwargs)
        if kind == "everywhere":
            return special.everywhere(func, args, kwargs)
        if kind == "like":
            return special.like(func, name, args, kwargs)
        if kind == "cast":
            return special.cast(func, args, kwargs, call.operands[0])
        if kind == "shaped":
            return special.shaped(func, args, kwargs)
        if kind == "each":
            return special.each(func, args, kwargs, call.operands)
        return self._compute(call, kind)

    def _compute(self, call: Call, kind: str) -> Any:
        """Bring the operands to one rank, and run it there: really on that rank, on meta elsewhere."""
        changes = table.in_place(call.name) or table.asked_in_place(call.func, call.args, call.kwargs)
        leaves, tree = tree_flatten(_plain(call))
        call.operands = [leaf for leaf in leaves if isinstance(leaf, Tensor)]  # not what is read: a view stays where it is
        written = table.changed(call.func, call.name, call.args, call.kwargs)
        to = _place(call, changes, written)
        here = to is None or channel().rank == to
        sizes = call.args[1] if kind == "draw within" and is_packed(call.args) else None  # Python reads them
        leaves = [leaf if leaf is sizes else _there(leaf, to, here) for leaf in leaves]
        call.args, call.kwargs = tree_unflatten(leaves, tree)
        if to is None:
            return call.run()
        if not here:
            _draw(call, kind)
            call.kwargs.pop("generator", None)
        if kind == "sized" or table.sized(call.name, call.args, call.kwargs):
            return tell_size(call.func, call.args, call.kwargs, to)
        if not here:
            result = _on_meta(call, to)
        else:
            result = call.run() if self.failures is None else self.failures.run(call.run, lambda: _stand_in(call, to, changes))
        if torch.is_autocast_enabled(channel().device.type) and not changes:
            result = self._same_dtypes(call, result, to)
        for value in written:
            if owner(value) is None:
                _tell(value, to)
        if written and self.on_change:
            self.on_change(result)
        own(result, to, call.name, changes)
        if self.early:
            self.early.made(result)
        return result

    def _same_dtypes(self, call: Call, result: Any, to: int) -> Any:
        """Under autocast a meta result may have another dtype than the real one: the owner tells it, once a signature."""
        leaves, tree = tree_flatten(result)
        key = call.func, tuple(value.dtype for value in tensors((call.args, call.kwargs))), call.kwargs.get("dtype")
        if key not in self._dtypes:
            dtypes = tuple(leaf.dtype for leaf in leaves if isinstance(leaf, Tensor))
            self._dtypes[key] = channel().tell(dtypes, to)
        told = iter(self._dtypes[key])
        return tree_unflatten([leaf.to(next(told)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)


def _place(call: Call, changes: bool, written: list[Tensor]) -> int | None:
    """Where it runs: where a changed operand is, else where parameters are, else at the last of its operands."""
    for value in written:
        wrote(value)
    target = call.operands[0] if changes else call.kwargs.get("out")
    if target is not None:
        if not isinstance(target, Tensor):
            raise Unsupported(f"torch's {call.name!r} with several out= tensors; assign its results instead")
        wrote(target)
        return owner(target)
    fixed = {rank for value in (*written, *filter(pinned, call.operands)) if (rank := owner(value)) is not None}
    if len(fixed) > 1 and written:
        raise Unsupported(f"{call.name}: its running statistics and its weights are on different ranks; --place them together")
    return max(fixed or {rank for value in call.operands if (rank := owner(value)) is not None}, default=None)


def _tell(value: Tensor, rank: int) -> None:
    """What a function wrote to a value that all ranks have was written on this rank."""
    there = bring(value, rank).detach()
    told = channel().broadcast(there, rank)
    if channel().rank != rank or there.data_ptr() != value.data_ptr():
        with torch.no_grad():
            value.detach().copy_(told)


def _draw(call: Call, kind: str) -> None:
    if kind == "draw" and not draws_nothing(call.name, call.args, call.kwargs):
        redraw(call.func, call.args, call.kwargs)
    elif kind == "draw within":
        redraw_within(drawn_within(call.name, call.args, call.kwargs))


def _plain(call: Call) -> tuple[Any, dict[str, Any]]:
    """The arguments, with numbers in place of what torch reads into Python."""
    name, args, kwargs = call.name, call.args, {key: plain_number(key, value) for key, value in call.kwargs.items()}
    if name in ("__getitem__", "__setitem__"):
        args = (args[0], plain_slices(args[1]), *args[2:])
    elif name in table.NUMBERED and len(call.operands) > 1:
        args = (*args[:1], *numbers(args[1:]))
        kwargs |= numbers({key: value for key, value in kwargs.items() if key not in table.SUBJECTS})
    return args, kwargs


def _there(leaf: Any, to: int | None, here: bool) -> Any:
    if isinstance(leaf, Tensor):
        return bring(leaf, to)
    return torch.device("meta") if isinstance(leaf, torch.device) and not here else leaf


def _stand_in(call: Call, to: int, changes: bool) -> Any:
    """Zeros in place of a result, where the other ranks have a result; raises what they raise."""
    leaves, tree = tree_flatten((call.args, call.kwargs))
    leaves = [leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten([_there(leaf, to, False) if isinstance(leaf, torch.device) else leaf for leaf in leaves], tree)
    made = _on_meta(Call(call.func, call.name, args, kwargs, []), to)
    return call.args[0] if changes else tree_map(zeros, made)


def _on_meta(call: Call, to: int) -> Any:
    try:
        return call.run()
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():
            raise
        raise Unsupported(f"torch's {call.name!r} needs values that only rank {to} has") from error
