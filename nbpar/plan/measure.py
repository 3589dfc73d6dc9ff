"""What a model costs, layer by layer, found by one forward pass on fake tensors: no memory, no arithmetic.

The model is copied with its tensors exchanged for fake ones, and watched (watch.py). Where fakes cannot tell (branches on values,
the workspace of recurrent layers), a small model is copied and run for real.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from nbpar.parallel.model.layers import Layer as Part
from nbpar.parallel.model.layers import chain
from nbpar.plan.figures import Columns, Figures, Layer
from nbpar.plan.rehearsal import Subject, rehearse
from nbpar.plan.watch import Watch

SMALL = 64 << 20  # bytes of weights and batch up to which a trial is made


def measure(
    model: nn.Module, batch: Any = None, optimiser: Any = None, rows: int | None = None, columns: Sequence[int] = ()
) -> Figures:
    """The model's figures for a batch: a tensor, or a tuple or dict of arguments. Nothing of the model or batch is changed.

    optimiser: whose state counts; without one, Adam's two moments are assumed. rows: as if the batch had so many.
    columns: numbers of ranks over which single layers may be split.
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

    def without_memory() -> Subject:
        return copy.deepcopy(model, {id(value): _twin(value) for value in _tensors(model, None)}), ghost_call(call, count)

    def with_memory() -> Subject:
        return copy.deepcopy(model), real_call(call, count)

    run, problem = None, ""
    try:
        with fakes:
            run = _run(without_memory, columns)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if (problem or any(isinstance(part, nn.RNNBase) for part in model.modules())) and _small(model, call):
        try:
            with torch.random.fork_rng(devices=()), contextlib.redirect_stdout(io.StringIO()):
                run, problem = _run(with_memory, columns), ""
        except Exception as error:
            problem = problem or f"{type(error).__name__}: {error}"
    if run is None or problem:
        note = f"the model does not run without its values ({problem}), so activations are not counted"
        return Figures(tuple(layers), rows=count, notes=(*notes, note))
    watch, output, split = run
    layers = [_running(layer, watch, k) for k, layer in enumerate(layers)]
    return Figures(tuple(layers), watch.forward, count, output, tuple(notes), split, watch.reads_rows)


def _run(make: Callable[[], Subject], columns: Sequence[int]) -> tuple[Watch, int, dict[int, Columns]]:
    """A forward pass of a copy, the bytes of its result, and training steps where its layers are split."""
    model, call = make()
    watch = Watch(chain({"": model}))
    return watch, watch.run(model, call), rehearse(model, make, columns)


def _running(layer: Layer, watch: Watch, place: int) -> Layer:
    """A layer with what its run has told. One that was not used gets no gradient."""
    layer = replace(layer, work=watch.work[place])
    return layer if watch.uses(place) else replace(layer, gradients=0, state=0)


def _small(model: nn.Module, call: Any) -> bool:
    values = [*model.parameters(), *(value for value in tree_leaves(call) if isinstance(value, Tensor))]
    return all(value.device.type == "cpu" for value in values) and sum(value.nbytes for value in values) <= SMALL


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
        return {value: 2 * value.nbytes for value in parameters}, ["no optimiser was given: Adam's two moments are assumed"]
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
    return sum(value.nbytes for value in tree_leaves(state) if isinstance(value, Tensor))


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
        weights=sum(value.nbytes for value in parameters),
        buffers=sum(value.nbytes for value in own if not isinstance(value, nn.Parameter)),
        gradients=sum(value.nbytes for value in parameters if value.requires_grad),
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


def real_call(call: Any, rows: int) -> Any:
    """The call with so many rows of its tensors."""
    return tree_map(lambda value: _rows(value.detach(), rows_of(call), rows) if isinstance(value, Tensor) else value, call)


def _rows(value: Tensor, whole: int, rows: int) -> Tensor:
    """So many rows of a tensor, repeated if there are not enough."""
    if not value.dim() or value.shape[0] != whole or rows == whole:
        return value
    return value[torch.arange(rows) % whole]
