"""What is replaced in torch while a cell runs, and put back after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import Function

from nbpar.errors import Unsupported
from nbpar.parallel.inner import Inner, of_class

from .channel import channel
from .checkpoints import LINE, generator, reentrant
from .home import give, owner, shared
from .operands import own, tensors, value_of
from .optimisers import group_as_on_one_device
from .pure import Impure
from .special import listening
from .transfer import bring

Call = Callable[[Callable[..., Any], nn.Module, Any, Any], Any]
_REENTRANT = torch.utils.checkpoint.CheckpointFunction  # another mode may put its own in this place


@contextmanager
def patched(call: Call, say: Callable[[str], None]) -> Iterator[None]:
    """call(original, module, args, kwargs) stands for nn.Module.__call__. say: takes a line for the report."""
    with ExitStack() as stack:

        def replace(place: Any, name: str, make: Callable[[Any], Any]) -> None:
            original = place.__dict__[name]
            setattr(place, name, make(original))
            stack.callback(setattr, place, name, original)

        replace(nn.Module, "__call__", lambda original: _module_call(original, call))
        replace(Tensor, "_reduce_ex_internal", _pickled_whole)
        replace(torch._C, "_group_tensors_by_device_and_dtype", lambda _: group_as_on_one_device)
        replace(Function, "apply", lambda original: _function_apply(of_class(original), say))
        replace(torch.autograd, "backward", _without_mode)
        replace(torch.optim.Optimizer, "zero_grad", _dropped)
        replace(torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", lambda original: _checkpoint(original, say))
        for name in ("from_numpy", "frombuffer"):
            replace(torch, name, _of_shared_memory)
        for name in ("register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"):
            replace(nn.Module, name, _no_backward_hook)
        torch.compiler.set_stance("force_eager")
        stack.callback(torch.compiler.set_stance, "default")
        yield


def _module_call(original: Callable[..., Any], call: Call) -> Callable[..., Any]:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call(original, self, args, kwargs)

    return __call__


def _of_shared_memory(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        tensor = original(*args, **kwargs)
        shared(tensor)
        return tensor

    return made


def _pickled_whole(original: Callable[..., Any]) -> Callable[..., Any]:
    """Pickling and torch.save bring the values, one tensor at a time."""

    def _reduce_ex_internal(self: Tensor, protocol: int) -> Any:
        with torch._C.DisableTorchFunction():
            return original(self if owner(self) is None else _whole_like(self), protocol)

    return _reduce_ex_internal


def _whole_like(value: Tensor) -> Tensor:
    whole = value_of(value)
    return nn.Parameter(whole, value.requires_grad) if isinstance(value, nn.Parameter) else whole


def _without_mode(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return original(*args, **kwargs)

    return backward


def _dropped(original: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients are dropped on all ranks alike, without a rule for each; what is set to zero goes by the rules."""

    def zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
        with torch._C.DisableTorchFunction() if set_to_none else nullcontext():
            original(self, set_to_none)

    return zero_grad


def _function_apply(original: Callable[..., Any], say: Callable[[str], None]) -> Any:
    """Functions that people write: their operands come together, and their backward sees the rules of the cell."""
    made: dict[tuple[type, int], type] = {}

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        nested = cls is _REENTRANT
        if channel().in_step and nested:
            raise Impure("its reentrant checkpoint gives gradients outside of the graph")
        if channel().in_step or issubclass(cls, Inner):
            return original(cls, *args, **kwargs)
        if nested:
            say(LINE)
            return reentrant(*args)
        with torch._C.DisableTorchFunction():
            owners = {rank for value in tensors((args, kwargs)) if (rank := owner(value)) is not None}
            if not owners:
                return original(cls, *args, **kwargs)
            rank = max(owners)
            args = tuple(bring(arg, rank) if isinstance(arg, Tensor) else arg for arg in args)
        if (cls, rank) not in made:
            made[cls, rank] = _ruled(cls, rank)
        with listening():
            result = original(made[cls, rank], *args, **kwargs)
        with torch._C.DisableTorchFunction():
            return own(result, rank)

    return classmethod(apply)


def _ruled(cls: Any, rank: int) -> type:
    """The function, for operands of one rank."""

    def backward(ctx: Any, *grads: Any) -> Any:
        for grad in grads:
            if isinstance(grad, Tensor):
                give(grad, rank)
        with listening():
            results = cls.backward(ctx, *grads)
        several = results if isinstance(results, tuple) else (results,)
        return tuple(bring(grad, rank) if isinstance(grad, Tensor) else grad for grad in several)

    return type(cls.__name__, (cls,), {"backward": staticmethod(backward)})


def _checkpoint(original: Callable[..., Any], say: Callable[[str], None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if channel().in_step:
            return original(*args, **kwargs)
        say(LINE)
        return generator(*args, **kwargs)

    return call


def _no_backward_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    def register(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if any(True for _ in self.parameters()):
            raise Unsupported(f"{original.__name__} on layers that are split; use output.register_hook(…) on the module's result")
        return original(self, *args, **kwargs)

    return register
