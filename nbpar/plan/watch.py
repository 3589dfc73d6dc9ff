"""What one forward pass computes, keeps for the backward pass and passes on: operation by operation, and the work by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nbpar.parallel.model import table
from nbpar.parallel.model.layers import Layer as Part
from nbpar.parallel.model.operands import tensors
from nbpar.plan.stages import Forward, Operation, Value
from nbpar.uncompiled import Mode

BYTES_A_FLOP = 4.0  # a byte moved costs as much as so many operations: only the ratio of layers matters


class Watch:
    """Follows one call of a model. parts: its layers."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.work: dict[int, float] = defaultdict(float)
        self.operations: list[Operation] = []
        self._sizes: dict[int, int] = {}
        self._homes: dict[int, list[int]] = defaultdict(list)
        self._saved: list[int] = []
        self._touched: set[int] = set()
        self._of_rows: dict[int, Any] = {}  # memories that depend on the arguments, kept alive
        self.reads_rows = False  # whether Python reads a value that depends on them
        self._alive: list[Tensor] = []  # so that no key is given away twice
        self._calls: list[tuple[int | None, tuple[int, ...]]] = []  # of modules: the layer that it is, the layers inside
        self._last = 0
        for place, part in enumerate(parts):
            for value in part.tensors():
                self._homes[_memory(value)].append(place)

    def run(self, model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
        """One forward pass; the bytes of its result."""
        arguments, keywords = call
        self._given = frozenset(_memory(value) for value in tensors(call))
        self._depend(tensors(call))
        keep = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda value: value)
        with self._hooks(model), torch.enable_grad(), keep, _Work(self), _Functions(self):
            result = model(*arguments, **keywords)
        return sum(value.nbytes for value in tree_leaves(result) if isinstance(value, Tensor))

    @property
    def forward(self) -> Forward:
        homes = {memory: tuple(places) for memory, places in self._homes.items()}
        return Forward(tuple(self.operations), self._sizes, homes, self._given)

    def uses(self, place: int) -> bool:
        """Whether the pass has used a tensor of the layer."""
        return any(_memory(value) in self._touched for value in self.parts[place].tensors())

    @contextmanager
    def _hooks(self, model: nn.Module) -> Iterator[None]:
        """Tell which modules with parameters are being called."""
        places = {part: place for place, layer in enumerate(self.parts) for part in layer.parts}
        handles = []
        for module in model.modules():
            if next(module.parameters(), None) is not None:
                inside = tuple(sorted({places[part] for part in module.modules() if part in places}))
                call = places.get(module), inside
                handles.append(module.register_forward_pre_hook(lambda *_, call=call: self._calls.append(call)))
                handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        layer, _ = self._calls.pop()
        self._last = self._last if layer is None else layer

    @property
    def layer(self) -> int:
        """The innermost one that is being called, else the one that was before."""
        return next((layer for layer, _ in reversed(self._calls) if layer is not None), self._last)

    def _pack(self, value: Tensor) -> Tensor:
        self._alive.append(value)
        self._saved.append(_memory(value))
        self._sizes[_memory(value)] = value.untyped_storage().nbytes()
        return value

    def did(self, name: str, takes: list[Tensor], gives: list[Tensor], changes: bool) -> None:
        """A torch function has run."""
        self._alive += takes + gives
        keeps, self._saved = tuple(dict.fromkeys(self._saved)), []
        if gives or keeps:
            within = tuple(layers for _, layers in self._calls)
            first = changes or table.KINDS.get(name) in ("like", "cast", "shaped")
            taken, given = tuple(map(_value, takes)), tuple(map(_value, gives))
            self.operations.append(Operation(within, taken, given, keeps, first, changes))

    def _depend(self, values: list[Tensor]) -> None:
        self._of_rows.update((_memory(value), value.untyped_storage()) for value in values)

    def worked(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operator has run."""
        used = {_memory(value) for value in tensors((args, kwargs))}
        self._touched |= used
        if not used.isdisjoint(self._of_rows):
            self.reads_rows |= func._overloadpacket.__name__ in table.READING_OPERATORS
            self._depend(tensors(out))
        count = flop_registry.get(func._overloadpacket)
        made = sum(value.nbytes for value in tensors(out))
        self.work[self.layer] += (count(*args, **kwargs, out_val=out) if count else 0) + BYTES_A_FLOP * made


class _Functions(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        changes = table.in_place(name) or table.asked_in_place(func, args, kwargs)
        self.watch.did(name, tensors((args, kwargs)), tensors(result), changes)
        return result


class _Work(Mode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.watch.worked(func, args, kwargs or {}, out)
        return out


def _value(value: Tensor) -> Value:
    return Value(id(value), _memory(value), value.nbytes, value.requires_grad)


def _memory(value: Tensor) -> int:
    return value.untyped_storage()._cdata
