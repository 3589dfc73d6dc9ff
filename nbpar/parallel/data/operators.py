"""What torch says of an operator, asked once for each."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Operator:
    """name: without namespace. own: of torch itself. written: its arguments, by place and name, that it writes to.

    seeded: it may draw random numbers. pointwise: each value of its result is made of values in the same place.
    """

    name: str
    own: bool
    written: tuple[tuple[int, str], ...]
    seeded: bool
    pointwise: bool


@functools.cache
def operator(function: Any) -> Operator:
    schema, tags = function._schema, function.tags
    space, _, name = schema.name.partition("::")
    written = tuple(
        (at, declared.name)
        for at, declared in enumerate(schema.arguments)
        if declared.alias_info is not None and declared.alias_info.is_write
    )
    return Operator(name, space == "aten", written, torch.Tag.nondeterministic_seeded in tags, torch.Tag.pointwise in tags)
