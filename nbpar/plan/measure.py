"""What a model costs, layer by layer, found by one forward pass on fake tensors: no memory, no arithmetic.

The model is copied with its tensors exchanged for fake ones. Hooks tell which layer runs, saved tensors what the backward pass will
need, a dispatch mode what each operation computes and which layer's result it takes. Where fakes cannot tell (branches on values,
the workspace of recurrent layers), a small model is copied and run for real.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from nbpar.parallel.model.layers import Layer as Part
from nbpar.parallel.model.layers import chain
from nbpar.plan.figures import Edge, Figures, Layer
from nbpar.uncompiled import Mode

SMALL = 64 << 20  # bytes of weights and batch up to which a trial is made
BYTES_A_FLOP = 4.0  # a byte moved costs as much as so many operations: only the ratio of layers matters


def measure(model: nn.Module, batch: Any = None, optimiser: Any = None, rows: int | None = None) -> Figures:
    """The model's figures for a batch: a tensor, or a tuple or dict of arguments. Nothing of the model or batch is changed.

    optimiser: whose state counts; without one, Adam's two moments are assumed. rows: as if the batch had so many.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        twins = {id(value): _twin(value) for value in _tensors(model, optimiser)}
        ghost = copy.deepcopy(model, dict(twins))
        parts = chain({"": ghost})
        state, notes = _state(optimiser, ghost, twins)
        layers = [_fixed(part, own, state) for part, own in _once(parts)]
    if batch is None:
        return Figures(tuple(layers), notes=(*notes, "no batch was given: activations are not counted"))
    call = call_of(model, batch)
    count = rows_of(call) if rows is None else rows
    watch, problem = None, ""
    try:
        with fakes:
            watch = Watch(parts, *ghost_call(call, count))
            output = watch.run(ghost)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if (problem or any(isinstance(part, nn.RNNBase) for part in model.modules())) and _small(model, call):
        try:
            watch, output = _trial(model, call, count)
            problem = ""
        except Exception as error:
            problem = problem or f"{type(error).__name__}: {error}"
    if watch is None or problem:
        note = f"the model does not run without its values ({problem}), so activations are not counted"
        return Figures(tuple(layers), rows=count, notes=(*notes, note))
    layers = [_running(layer, watch, k) for k, layer in enumerate(layers)]
    return Figures(tuple(layers), tuple(watch.edges.values()), count, output, tuple(notes))


def _running(layer: Layer, watch: Watch, place: int) -> Layer:
    """A layer with what its run has told. One that was not used gets no gradient."""
    layer = replace(layer, activations=watch.saved[place], work=watch.work[place])
    return layer if watch.uses(place) else replace(layer, gradients=0, state=0)


def _small(model: nn.Module, call: Any) -> bool:
    values = [*model.parameters(), *(value for value in tree_leaves(call) if isinstance(value, Tensor))]
    return all(value.device.type == "cpu" for value in values) and sum(map(nbytes, values)) <= SMALL


def _trial(model: nn.Module, call: Any, rows: int) -> tuple[Watch, int]:
    """A real forward pass of a copy. Random states stay, and nothing is printed."""
    twin = copy.deepcopy(model)
    arguments, keywords = tree_map(
        lambda value: _rows(value.detach(), rows_of(call), rows) if isinstance(value, Tensor) else value, call
    )
    watch = Watch(chain({"": twin}), arguments, keywords)
    with torch.random.fork_rng(devices=()), contextlib.redirect_stdout(io.StringIO()):
        return watch, watch.run(twin)


# ---- the copy without memory ----------------------------------------------------------------------------------------------


def _tensors(model: nn.Module, optimiser: Any) -> Iterator[Tensor]:
    for part in model.modules():
        for values in (part._parameters, part._buffers, part.__dict__):
            yield from (value for value in values.values() if isinstance(value, Tensor))
    for state in getattr(optimiser, "state", {}).values():
        yield from (value for value in tree_leaves(state) if isinstance(value, Tensor) and value.dim())


def _twin(value: Tensor) -> Tensor:
    """A fake of it; what is on the meta device is taken to be meant for the CPU."""
    made = torch.empty_like(value, device="cpu" if value.is_meta else value.device)
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def _state(optimiser: Any, ghost: nn.Module, twins: Mapping[int, Any]) -> tuple[dict[nn.Parameter, int], list[str]]:
    """Bytes of optimiser state by parameter: what it holds, else what one step on the copy leaves."""
    parameters = [value for value in ghost.parameters() if value.requires_grad]
    if optimiser is None:
        return {value: 2 * nbytes(value) for value in parameters}, ["no optimiser was given: Adam's two moments are assumed"]
    if optimiser.state:
        return {twins[id(value)]: held(state) for value, state in optimiser.state.items() if id(value) in twins}, []
    try:
        twin = copy.deepcopy(optimiser, dict(twins))
        for value in parameters:
            value.grad = torch.empty_like(value)
        twin.step()
    except Exception:
        return {}, [f"the state of {type(optimiser).__name__} is not counted: it does not step on tensors without values"]
    finally:
        for value in parameters:
            value.grad = None
    return {value: held(state) for value, state in twin.state.items()}, []


def held(state: Any) -> int:
    """Bytes of the tensors in it."""
    return sum(nbytes(value) for value in tree_leaves(state) if isinstance(value, Tensor))


def fixed(parts: Sequence[Part], without: str = "") -> tuple[Layer, ...]:
    """Layers without a run and without an optimiser. without: a beginning that names lose."""
    layers = [_fixed(part, own, {}) for part, own in _once(parts)]
    return tuple(replace(layer, name=layer.name.removeprefix(without)) for layer in layers)


def _once(parts: Sequence[Part]) -> Iterator[tuple[Part, list[Tensor]]]:
    """Each layer with those of its tensors that no earlier one has."""
    seen: set[int] = set()
    for part in parts:
        own = []
        for value in part.tensors():
            if id(value) not in seen:
                seen.add(id(value))
                own.append(value)
        yield part, own


def _fixed(part: Part, own: list[Tensor], state: Mapping[Any, int]) -> Layer:
    parameters = [value for value in own if isinstance(value, nn.Parameter)]
    return Layer(
        name=part.name.lstrip(".") or type(part.module).__name__,
        kind=type(part.module).__name__,
        parameters=sum(value.numel() for value in parameters),
        weights=sum(map(nbytes, parameters)),
        buffers=sum(nbytes(value) for value in own if not isinstance(value, nn.Parameter)),
        gradients=sum(nbytes(value) for value in parameters if value.requires_grad),
        state=sum(state.get(value, 0) for value in parameters),
    )


# ---- the call -------------------------------------------------------------------------------------------------------------


def call_of(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with a batch. Of (inputs, labels), only what `forward` takes."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if not isinstance(batch, (tuple, list)):
        return (batch,), {}
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return tuple(batch), {}
    needed = [p for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty and p.kind < 2]
    return tuple(batch[: max(1, len(needed))]), {}


def rows_of(batch: Any) -> int:
    """The length of the first tensor's first dimension."""
    return next((value.shape[0] for value in tree_leaves(batch) if isinstance(value, Tensor) and value.dim()), 0)


def ghost_call(call: Any, rows: int) -> Any:
    """The call with fake tensors of so many rows. Under a fake mode."""
    whole = rows_of(call)

    def make(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = (rows, *value.shape[1:]) if value.dim() and value.shape[0] == whole else value.shape
        device = "cpu" if value.is_meta else value.device
        return torch.empty(shape, dtype=value.dtype, device=device, requires_grad=value.requires_grad)

    return tree_map(make, call)


def _rows(value: Tensor, whole: int, rows: int) -> Tensor:
    """So many rows of a tensor, repeated if there are not enough."""
    if not value.dim() or value.shape[0] != whole or rows == whole:
        return value
    return value[torch.arange(rows) % whole]


@dataclass
class Watch:
    """What one forward pass computes, keeps and passes on, by layer."""

    parts: Sequence[Part]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    saved: Counter[int] = field(default_factory=Counter)
    work: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    edges: dict[tuple[int, int], Edge] = field(default_factory=dict)

    def run(self, model: nn.Module) -> int:
        """One forward pass; the bytes of its result."""
        self.stack: list[int] = []
        self.last = 0
        self.home: dict[int, int] = {}
        self.touched: set[int] = set()
        self.alive: list[Any] = []  # so that no storage's key is given away twice
        self.ignored = {_key(value) for value in tree_leaves((self.arguments, self.keywords)) if isinstance(value, Tensor)}
        for place, part in enumerate(self.parts):
            for value in part.tensors():
                self.home.setdefault(_key(value), place)
        self.ignored |= set(self.home)
        keep = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda value: value)
        with self._hooks(), torch.enable_grad(), keep, _Operations(self):
            result = model(*self.arguments, **self.keywords)
        return sum(nbytes(value) for value in tree_leaves(result) if isinstance(value, Tensor))

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        for place, part in enumerate(self.parts):
            handles.append(part.module.register_forward_pre_hook(lambda *_, place=place: self._enter(place)))
            handles.append(part.module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, place: int) -> None:
        self.stack.append(place)

    def _leave(self) -> None:
        self.last = self.stack.pop()

    @property
    def now(self) -> int:
        return self.stack[-1] if self.stack else self.last

    def _pack(self, value: Tensor) -> Tensor:
        key = _key(value)
        if key not in self.ignored:
            self.ignored.add(key)
            self.alive.append(value)
            self.saved[self.now] += value.untyped_storage().nbytes()
        return value

    def uses(self, place: int) -> bool:
        """Whether the pass has used a tensor of the layer."""
        return any(_key(value) in self.touched for value in self.parts[place].tensors())

    def used(self, value: Tensor) -> None:
        self.touched.add(_key(value))
        source = self.home.get(_key(value), self.now)
        edge = Edge(_key(value), source, self.now, nbytes(value), value.is_floating_point())
        if source != self.now and (known := self.edges.get((edge.key, edge.target), edge)).bytes <= edge.bytes:
            self.edges[known.key, known.target] = edge

    def made(self, value: Tensor) -> None:
        self.alive.append(value)
        self.home[_key(value)] = self.now


class _Operations(Mode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        watch, kwargs = self.watch, kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                watch.used(value)
        out = func(*args, **kwargs)
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        for value in results:
            watch.made(value)
        count = flop_registry.get(func._overloadpacket)
        watch.work[watch.now] += count(*args, **kwargs, out_val=out) if count else 0
        watch.work[watch.now] += BYTES_A_FLOP * sum(map(nbytes, results))
        return out


def nbytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _key(value: Tensor) -> int:
    return value.untyped_storage()._cdata
