"""Calls of torch's own backends in the trace, so that it can be told who waits where.

They go from Python through the methods of C++ classes: of a process group, which begin an operation, and of its work, which wait
for it. Those are replaced. What C++ calls by itself, as DistributedDataParallel does in a backward pass, is not seen: see `asleep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.distributed import ProcessGroup, Work
from torch.distributed import distributed_c10d as c10d

from .collectives import NOTHING
from .foreign import WAITED
from .trace import trace


class Method(NamedTuple):
    """operation: as messages name it. tensors: the argument with those that tell its size, if any; peer: that with the other rank,
    if the options do not tell a root."""

    operation: str
    tensors: int | None = 0
    peer: int | None = None


METHODS = {
    "allreduce": Method("all_reduce"),
    "allreduce_coalesced": Method("all_reduce"),
    "broadcast": Method("broadcast"),
    "reduce": Method("reduce"),
    "allgather": Method("all_gather", 1),
    "_allgather_base": Method("all_gather", 1),
    "all_gather_single": Method("all_gather", 1),
    "allgather_coalesced": Method("all_gather", 1),
    "gather": Method("gather", 1),
    "scatter": Method("scatter"),
    "reduce_scatter": Method("reduce_scatter"),
    "_reduce_scatter_base": Method("reduce_scatter"),
    "reduce_scatter_single": Method("reduce_scatter"),
    "alltoall": Method("all_to_all", 1),
    "alltoall_base": Method("all_to_all", 1),
    "all_to_all_single": Method("all_to_all", 1),
    "barrier": Method("barrier", None),
    "monitored_barrier": Method("barrier", None),
    "send": Method("send", 0, 1),
    "recv": Method("recv", 0, 1),
    "recv_anysource": Method("recv"),
}
_calls: WeakKeyDictionary[Work, int] = WeakKeyDictionary()  # by work, its call in the trace
_replaced: list[tuple[type, str, Any]] = []


def install() -> None:
    """From now on they are noted. torch's versions differ in which of the methods there are."""
    for name, method in METHODS.items():
        if hasattr(ProcessGroup, name):
            _replace(ProcessGroup, name, partial(_begun, method))
    _replace(Work, "wait", _awaited)


def remove() -> None:
    while _replaced:
        setattr(*_replaced.pop())


def _replace(kind: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(kind, name)
    _replaced.append((kind, name, original))
    setattr(kind, name, wraps(original)(make(original)))


def _begun(method: Method, original: Any) -> Any:
    def begin(group: Any, *args: Any, **kwargs: Any) -> Any:
        ranks = list(c10d._world.pg_group_ranks.get(group, ()))
        trace.members[group.group_name] = ranks
        tensors = list(_tensors(_at(args, method.tensors)))
        place = getattr(args[-1] if args else None, "rootRank", -1) if method.peer is None else _at(args, method.peer, -1)
        peer = ranks[place] if 0 <= place < len(ranks) else -1
        receives = method.operation == "recv" or (method.operation == "broadcast" and place != group.rank())
        nbytes = 0 if receives else sum(tensor.nbytes for tensor in tensors)
        call = trace.begin(group.group_name, method.operation, tensors[0] if tensors else NOTHING, nbytes, peer)
        try:
            work = _waiting(call, original, group, *args, **kwargs)  # some wait in it
        finally:
            trace.end(call)  # nobody waits for it, unless somebody says so
        if work is not None:
            _calls[work] = call
        return work

    return begin


def _awaited(original: Any) -> Any:
    def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
        call = _calls.get(work)
        if call is None:
            return original(work, *args, **kwargs)
        trace.again(call)
        try:
            return _waiting(call, original, work, *args, **kwargs)
        finally:
            trace.end(call)

    return wait


def _waiting(call: int, original: Any, *args: Any, **kwargs: Any) -> Any:
    trace.waiting = call
    try:
        return original(*args, **kwargs)
    except RuntimeError as error:
        setattr(error, WAITED, str(trace.current()))
        raise
    finally:
        trace.waiting = None


def _at(args: tuple[Any, ...], place: int | None, otherwise: Any = None) -> Any:
    return args[place] if place is not None and place < len(args) else otherwise


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _tensors(part)
