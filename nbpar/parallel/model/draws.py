"""Random streams stay in lockstep: what the owner draws, every other rank draws too, and drops.

Numbers drawn for a remote value are drawn on scratch tensors of the same shapes, so that all ranks' streams move on alike
and one process's stream is the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .channel import channel

Shape = tuple[int, ...]


def redraw(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Call a function that draws, on scratch values."""
    with torch.no_grad():
        function(*tree_map(_scratch, args), **tree_map(_scratch, kwargs))


def draws_nothing(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Dropout that is off."""
    if "dropout" not in name:
        return False
    p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    return not p or not training


def redraw_within(draws: list[tuple[Shape, float, torch.dtype]]) -> None:
    for shape, p, dtype in draws:
        torch.nn.functional.dropout(torch.ones(shape, dtype=dtype, device=channel().device), p, True)


def _scratch(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    fill = 0.5 if value.is_floating_point() else 1
    return torch.full_like(value.detach(), fill, device=channel().device, requires_grad=False)


def drawn_within(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Shape, float, torch.dtype]]:
    """The dropouts inside one call of attention or of a recurrent layer: shape, probability and dtype of each."""
    if name == "scaled_dot_product_attention":
        return _attention(args, kwargs)
    if name == "multi_head_attention_forward":
        return _multi_head(args, kwargs)
    return _recurrent(name, args)


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Shape, float, torch.dtype]]:
    p = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
    query = kwargs.get("query", args[0] if args else None)
    key = kwargs.get("key", args[1] if len(args) > 1 else None)
    assert isinstance(query, Tensor) and isinstance(key, Tensor)
    return [((*query.shape[:-1], key.shape[-2]), p, query.dtype)] if p else []


def _multi_head(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Shape, float, torch.dtype]]:
    query, key, heads, p = args[0], args[1], args[4], args[10]
    training = kwargs.get("training", args[13] if len(args) > 13 else True)
    sources = key.shape[0] + (args[7] is not None) + bool(args[9])
    return [((query.numel() // query.shape[-1] * heads * sources,), p, query.dtype)] if p and training else []


def is_packed(args: Sequence[Any]) -> bool:
    """Whether a recurrent call is on a packed sequence; its second argument is then the batch sizes."""
    return isinstance(args[1], Tensor) and not args[1].is_floating_point() and args[1].dim() == 1


def _recurrent(name: str, args: Sequence[Any]) -> list[tuple[Shape, float, torch.dtype]]:
    packed = is_packed(args)
    layers, p, training, both = args[5:9] if packed else args[4:8]
    if not p or not training or layers < 2:
        return []
    weights, states = (args[3], args[2]) if packed else (args[2], args[1])
    state = states[0] if isinstance(states, (list, tuple)) else states
    hidden = weights[1].shape[1] if name == "lstm" else state.shape[-1]
    shape = args[0].numel() // args[0].shape[-1], hidden * (2 if both else 1)
    return [(shape, p, args[0].dtype)] * (layers - 1)
