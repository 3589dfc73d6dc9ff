"""The same bytes for many ranks, handed on from one to the next: over the network once to each host.

The first rank of each host forms a tree with those of the other hosts, and one with the other ranks of its own host. In a
binomial tree of n ranks nobody is further than log₂ n steps from the first:

    0 ─┬─ 1 ─── 3
       ├─ 2           of five; rank 0 sends to 4, the furthest branch, last
       └─ 4
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .state import state

TAG = 1  # on the control group; its meetings have 0


@dataclass(frozen=True)
class Way:
    """Of one rank: whom it receives from, None for the first; whom it sends to, in this order."""

    parent: int | None
    children: tuple[int, ...]


def way(rank: int, ranks: Sequence[int], hosts: Sequence[str]) -> Way:
    """Of `rank` among `ranks`. hosts: names, by rank of the world."""
    of_host: dict[str, list[int]] = {}
    for one in ranks:
        of_host.setdefault(hosts[one], []).append(one)
    here = of_host[hosts[rank]]
    inside = branch(rank, here)
    if rank != here[0]:
        return inside
    outside = branch(rank, [each[0] for each in of_host.values()])
    return Way(outside.parent, outside.children + inside.children)


def branch(rank: int, ranks: Sequence[int]) -> Way:
    """Of `rank` in the binomial tree over `ranks`."""
    place = ranks.index(rank)
    top = place.bit_length()  # a rank joins in step `top`, and sends in the steps after that
    parent = ranks[place - (1 << top - 1)] if place else None
    steps = range(top, len(ranks).bit_length())
    return Way(parent, tuple(ranks[place + (1 << step)] for step in steps if place + (1 << step) < len(ranks)))


def relay(frames: Sequence[Any], sizes: Sequence[int], way: Way) -> list[memoryview]:
    """The frames, handed on. frames: what the first rank has; sizes: of each in bytes. Raises PeerFailed after `abort`."""
    control: Any = state.control
    parts = [memoryview(frame) for frame in frames] if way.parent is None else [memoryview(bytearray(size)) for size in sizes]
    tensors = list(as_tensors(parts))
    receives = [control.recv([tensor], way.parent, TAG) for tensor in tensors] if way.parent is not None else []
    sends = []
    for place, tensor in enumerate(tensors):
        if receives:
            receives[place].wait()
        sends += [control.send([tensor], child, TAG) for child in way.children]
    for send in sends:
        send.wait()
    return parts


def as_tensors(parts: Sequence[memoryview]) -> Iterator[Tensor]:
    """Those that are not empty, as bytes of shape (length,)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nobody writes to it
        for part in parts:
            if part.nbytes:
                yield torch.frombuffer(part, dtype=torch.uint8)
