"""The layers of models as a chain: what is placed as a whole, in which order, at which cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from torch import Tensor, nn

from nbpar.errors import OptionError, Unsupported, suggest
from nbpar.plan.partition import partition


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with tensors of its own. `parts` are the modules inside that must be on the same rank."""

    name: str
    module: nn.Module
    parts: tuple[nn.Module, ...]

    def tensors(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from (value for value in (*part._parameters.values(), *part._buffers.values()) if value is not None)


def parts_of(module: nn.Module) -> list[nn.Module]:
    """What `modules` gives, sooner."""
    found: dict[int, nn.Module] = {}
    todo: list[nn.Module | None] = [module]
    while todo:
        part = todo.pop()
        if part is not None and id(part) not in found:
            found[id(part)] = part
            todo.extend(reversed(part._modules.values()))
    return list(found.values())


def chain(models: Mapping[str, nn.Module]) -> list[Layer]:
    """Every layer of the models, by its full name, in the order of registration."""
    layers: list[Layer] = []
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> None:
        if module in seen:
            return
        parts = tuple(module.modules()) if _indivisible(module) else (module,)
        seen.update(parts)
        layer = Layer(name, module, parts)
        if any(True for _ in layer.tensors()):
            layers.append(layer)
        if len(parts) == 1:
            for child, inner in module.named_children():
                walk(f"{name}.{child}", inner)

    for name, model in models.items():
        walk(name, model)
    return layers


def _indivisible(module: nn.Module) -> bool:
    """Modules that use the tensors of the modules inside them directly."""
    return isinstance(module, nn.MultiheadAttention) or hasattr(module, "parametrizations")


def sizes(layers: Sequence[Layer]) -> list[float]:
    """Bytes that training keeps for each layer, tied tensors once: a parameter, its gradient and two moments; a buffer."""
    seen: set[int] = set()
    result = []
    for layer in layers:
        size = 0
        for value in layer.tensors():
            if id(value) not in seen:
                seen.add(id(value))
                size += value.numel() * value.element_size() * (4 if value.requires_grad else 1)
        result.append(float(size))
    return result


def divide(layers: Sequence[Layer], costs: Sequence[float], ranks: int, fixed: Mapping[str, int]) -> list[int]:
    """The rank of each layer. fixed: names (of a module, with or without its model's) placed by hand."""
    names = [layer.name.split(".") for layer in layers]
    joints = [0, *(_shared(a, b) for a, b in pairwise(names))]
    chosen = partition(costs, ranks, joints)
    for name, rank in fixed.items():
        hits = [i for i, parts in enumerate(names) if _within(name.split("."), parts)]
        if not hits:
            known = sorted({".".join(parts[:k]) for parts in names for k in range(1, len(parts) + 1)})
            raise OptionError(f"--place {name}={rank}: no module of that name.{suggest(name, known)}")
        if not 0 <= rank < ranks:
            raise OptionError(f"--place {name}={rank}: ranks are 0 to {ranks - 1}")
        for i in hits:
            chosen[i] = rank
    return chosen


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many modules two layers are both in."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def _within(name: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether `a.b` names the module `a.b.c`, or `model.a.b.c` without its model's name."""
    return list(parts[: len(name)]) == list(name) or list(parts[1 : len(name) + 1]) == list(name)


def roots(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Modules with parameters that are not inside another of them."""
    named = {name: module for name, module in modules if any(True for _ in module.parameters())}
    inner = {id(part) for module in named.values() for part in module.modules() if part is not module}
    found: dict[str, nn.Module] = {}
    for name, module in named.items():
        if id(module) not in inner and all(module is not other for other in found.values()):
            found[name] = module
    return found


def nests(module: nn.Module, mask: Tensor | None) -> bool:
    """Whether torch's encoder may take its way for evaluation, which leaves zeros at masked positions."""
    if not isinstance(module, nn.TransformerEncoder) or mask is None or module.training or torch.is_grad_enabled():
        return False
    return bool(module.enable_nested_tensor and torch.backends.mha.get_fastpath_enabled())


def refuse_nested(module: nn.Module, mask: Tensor | None) -> None:
    """That way needs all layers on one rank."""
    if nests(module, mask):
        raise Unsupported(
            "nn.TransformerEncoder in evaluation with src_key_padding_mask, on several ranks: write "
            "torch.backends.mha.set_fastpath_enabled(False) before, or --place the encoder on one rank"
        )


def unfit(model: nn.Module) -> str | None:
    """Why a model cannot be divided, in words."""
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            return f"{name or 'it'} is a ScriptModule"
        if getattr(part, "sparse", False) is True:
            return f"{name or 'it'} gives sparse gradients"
        if part._backward_hooks or part._backward_pre_hooks:
            return f"{name or 'it'} has a full backward hook"
        if any(nn.parameter.is_lazy(value) for value in part._parameters.values() if value is not None):
            return f"{name or 'it'} has lazy parameters; call the model once in a cell before"
        for value in (*part._parameters.values(), *part._buffers.values()):
            if value is not None and value.layout is not torch.strided:
                return f"{name or 'it'} has sparse tensors"
    return None
