"""What Python makes of tensors' sizes: a program that decides by the number of rows may do something else with more of them.

While `watching`, sizes are integers that know which dimension of which tensor they are. To pass them on, as in
`view(b * t, c)`, is no decision. To compare them, or to calculate with them in any other way, is noted as one.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nbpar.parallel.patch import patched

Dimension = tuple[int, int]  # a tensor's id, and a dimension of it


@dataclass
class Notes:
    """decisions: each by some dimensions, perhaps against others. odd: something that is not followed. kept: keeps ids unique.

    seen: numbers of rows up to this one are what the runs themselves have: to compare with them decides nothing that is not seen.
    rows: how many this run has. linear: products that were taken to grow with the rows, which no more than one of them may be.
    """

    seen: int
    rows: int
    decisions: list[tuple[tuple[Dimension, ...], tuple[Dimension, ...]]] = field(default_factory=list)
    linear: list[tuple[Dimension, ...]] = field(default_factory=list)
    odd: str = ""
    kept: list[Tensor] = field(default_factory=list)


notes: Notes | None = None


class Count(int):
    """A size. of: the dimensions that it is the product of."""

    of: tuple[Dimension, ...] = ()

    @classmethod
    def made(cls, value: int, of: tuple[Dimension, ...]) -> Count:
        count = cls(value)
        count.of = of
        return count

    def __mul__(self, other: Any) -> Any:
        result = int.__mul__(self, other)
        return self.decided(result) if result is NotImplemented else Count.made(result, (*self.of, *getattr(other, "of", ())))

    __rmul__ = __mul__

    def __hash__(self) -> int:
        if sys._getframe(1).f_globals.get("__name__") == "einops.einops":  # it remembers shapes, but for what is no plain integer
            raise TypeError("unhashable")
        return self.decided(int.__hash__(self))

    def __floordiv__(self, other: Any) -> Any:
        result = int.__floordiv__(self, other)
        if notes is None or type(other) is not int or int.__mod__(self, notes.rows * other):
            return floor_divided(self, other)
        notes.linear.append(self.of)
        return Count.made(result, self.of)

    def is_small(self, other: Any) -> bool:
        """Whether any number of rows but those that are seen gives a size above this constant: it may be several for each row."""
        if notes is None or not isinstance(other, int) or isinstance(other, Count):
            return False
        if other <= notes.seen:
            return True
        small: bool = other * notes.rows < int.__mul__(self, notes.seen + 1)
        if small:
            notes.linear.append(self.of)
        return small

    def decided(self, result: Any, other: Any = None) -> Any:
        if notes is not None:
            notes.decisions.append((self.of, getattr(other, "of", ())))
        return result


def compares(name: str) -> Callable[[Count, Any], Any]:
    plain = getattr(int, name)

    def method(self: Count, other: Any) -> Any:
        result = plain(self, other)
        return result if self.is_small(other) or is_one(self, other) else self.decided(result, other)

    return method


def is_one(count: Count, other: Any) -> bool:
    """Whether one of two sizes is 1. There are more rows, so it is not their number, which compares alike whatever it is."""
    return isinstance(other, Count) and notes is not None and any(int.__le__(one, notes.seen) for one in (count, other))


def calculates(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Count, *others: Any) -> Any:
        result = plain(self, *others)
        if notes is not None:
            notes.decisions.append((sum((getattr(other, "of", ()) for other in others), self.of), ()))
        return result

    return method


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Count, f"__{_name}__", compares(f"__{_name}__"))
for _name in ("add", "sub", "truediv", "mod", "divmod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(Count, f"__{_name}__", calculates(f"__{_name}__"))
    setattr(Count, f"__r{_name}__", calculates(f"__r{_name}__"))
floor_divided = calculates("__floordiv__")
Count.__rfloordiv__ = calculates("__rfloordiv__")  # type: ignore[method-assign]
for _name in ("float", "int", "neg", "abs", "invert", "round", "floor", "ceil", "trunc"):
    setattr(Count, f"__{_name}__", calculates(f"__{_name}__"))


def sizes(tensor: Tensor, plain: Any) -> list[Count]:
    assert notes is not None
    notes.kept.append(tensor)
    return [Count.made(size, ((id(tensor), dim),)) for dim, size in enumerate(plain)]


@contextmanager
def watching(seen: int, rows: int) -> Iterator[Notes]:
    """seen, rows: see `Notes`."""
    global notes
    plain: Any = torch._C.TensorBase
    get_shape, get_node = plain.shape.__get__, plain.grad_fn.__get__

    def shape(tensor: Tensor) -> Any:
        return get_shape(tensor) if notes is None else torch.Size(sizes(tensor, get_shape(tensor)))

    def size(original: Any) -> Any:
        def method(tensor: Tensor, dim: Any = None) -> Any:
            if notes is None or isinstance(dim, str):
                return original(tensor, dim)
            return shape(tensor) if dim is None else shape(tensor)[dim]

        return method

    def numel(original: Any) -> Any:
        def method(tensor: Tensor) -> Any:
            if notes is None:
                return original(tensor)
            notes.kept.append(tensor)
            return Count.made(original(tensor), tuple((id(tensor), dim) for dim in range(tensor.dim())))

        return method

    def length(original: Any) -> Any:
        def method(tensor: Tensor) -> Any:
            if notes is not None:
                notes.kept.append(tensor)
                notes.decisions.append((((id(tensor), 0),), ()))
            return original(tensor)

        return method

    def python_len(original: Any) -> Any:  # which makes an integer of what `__len__` gives
        def method(value: Any, /) -> Any:
            if notes is None or not isinstance(value, Tensor) or not value.dim():
                return original(value)
            return shape(value)[0]

        return method

    def node(tensor: Tensor) -> Any:
        found("it looks at its graph")
        return get_node(tensor)

    def odd(what: str) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def method(*args: Any, **kwargs: Any) -> Any:
                found(what)
                return original(*args, **kwargs)

            return method

        return make

    before = notes
    with ExitStack() as stack:
        for name, make in (("size", size), ("numel", numel), ("nelement", numel), ("__len__", length)):
            stack.enter_context(patched(Tensor, name, make))
        for name in ("register_hook", "register_post_accumulate_grad_hook"):
            stack.enter_context(patched(Tensor, name, odd("it has hooks on gradients")))
        stack.enter_context(patched(torch._C._autograd, "_push_saved_tensors_default_hooks", packing))
        stack.enter_context(patched(Tensor, "shape", lambda plain: property(shape)))
        stack.enter_context(patched(Tensor, "grad_fn", lambda plain: property(node)))
        stack.enter_context(patched(builtins, "len", python_len))
        notes = made = Notes(seen, rows)
        try:
            yield made
        finally:
            notes = before


def packing(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(pack: Any, unpack: Any) -> Any:
        if getattr(pack, "__module__", "") != "torch.utils.checkpoint":  # which runs again what has been seen: see `checkpoints`
            found("it packs what the backward pass needs")
        return original(pack, unpack)

    return method


def found(what: str) -> None:
    if notes is not None:
        notes.odd = notes.odd or what
