"""Each collective against its definition, on random shapes, types, layouts and groups; runs on every rank alike.

Hypothesis draws the same examples on all ranks. The ranks agree on each example's outcome, so that a failure is shrunk in
step too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from torch import Tensor
from torch.distributed import ReduceOp

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
COMPLEX = [torch.complex64, torch.complex128]
TYPES = [*FLOATS, *INTEGERS, *COMPLEX, torch.bool]
LAYOUTS = ["plain", "transposed", "every second"]

DEFINITIONS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    ReduceOp.SUM: torch.add,
    ReduceOp.AVG: torch.add,
    ReduceOp.PRODUCT: torch.mul,
    ReduceOp.MIN: torch.minimum,
    ReduceOp.MAX: torch.maximum,
    ReduceOp.BAND: torch.bitwise_and,
    ReduceOp.BOR: torch.bitwise_or,
    ReduceOp.BXOR: torch.bitwise_xor,
}


@dataclass(frozen=True)
class Case:
    """One example: every rank can tell every rank's input, from the seed."""

    seed: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    op: Any
    whole_world: bool
    root: int
    asynchronous: bool


PLAIN_SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple)
SHAPES = PLAIN_SHAPES | PLAIN_SHAPES | st.sampled_from([(), (0,), (2, 0), (1,), (3,)])


@st.composite
def cases(draw: st.DrawFn, size: int) -> Case:
    dtype = draw(st.sampled_from(TYPES))
    ops = [ReduceOp.SUM, ReduceOp.AVG]
    if not dtype.is_complex:
        ops += [ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX]
    if dtype in INTEGERS or dtype == torch.bool:
        ops += [ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR]
    if dtype == torch.bool:
        ops.remove(ReduceOp.AVG)
    return Case(
        seed=draw(st.integers(0, 10**6)),
        shape=draw(SHAPES),
        dtype=dtype,
        layout=draw(st.sampled_from(LAYOUTS)),
        op=draw(st.sampled_from(ops)),
        whole_world=draw(st.booleans()),
        root=draw(st.integers(0, size - 1)),
        asynchronous=draw(st.booleans()),
    )


class Ranks:
    """One example on one rank: the group it runs on, and what goes in and is expected there."""

    def __init__(self, case: Case, groups: dict[bool, Any]) -> None:
        self.case, self.group = case, groups[case.whole_world]
        self.members = dist.get_process_group_ranks(self.group)
        self.size, self.me = len(self.members), dist.get_rank(self.group)
        self.root = case.root % self.size

    def values(self, rank: int, salt: int = 0, shape: tuple[int, ...] | None = None) -> Tensor:
        """A rank's input: small whole numbers, so that no sum is rounded in any type."""
        stream = torch.Generator().manual_seed(self.case.seed * 1000 + rank * 10 + salt)
        low = 0 if self.case.dtype in (torch.uint8, torch.bool) else -3
        shape = self.case.shape if shape is None else shape
        return torch.randint(low, 4, shape, generator=stream).to(self.case.dtype)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """The same values in the case's memory layout."""
        if self.case.layout == "transposed" and tensor.dim() > 1:
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if self.case.layout == "every second" and tensor.dim() > 0:
            room = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
            room[..., ::2] = tensor
            return room[..., ::2]
        return tensor.clone()

    def room(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return self.laid_out(torch.zeros(self.case.shape if shape is None else shape, dtype=self.case.dtype))

    def reduced(self, tensors: list[Tensor]) -> Tensor:
        """The definition of a reduction."""
        dtype = self.case.dtype
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        if dtype == torch.bool and self.case.op in (ReduceOp.SUM, ReduceOp.PRODUCT):
            return reduce(torch.logical_or if self.case.op == ReduceOp.SUM else torch.logical_and, tensors)
        total = reduce(DEFINITIONS[self.case.op], [tensor.to(wide) for tensor in tensors])
        if self.case.op == ReduceOp.AVG:
            exact = dtype.is_floating_point or dtype.is_complex
            total = total / self.size if exact else torch.div(total, self.size, rounding_mode="trunc")
        return total.to(dtype)

    def call(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        work = collective(*args, group=self.group, async_op=self.case.asynchronous, **kwargs)
        if self.case.asynchronous:
            assert work.get_future().wait() is not None or work.wait()

    def everyone(self, salt: int = 0, shape: tuple[int, ...] | None = None) -> list[Tensor]:
        return [self.values(rank, salt, shape) for rank in range(self.size)]


def equal(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape, (got, expected)
    assert torch.equal(got, expected), (got, expected)


def all_reduce(it: Ranks) -> None:
    mine = it.laid_out(it.values(it.me))
    it.call(dist.all_reduce, mine, op=it.case.op)
    equal(mine, it.reduced(it.everyone()))


def all_reduce_coalesced(it: Ranks) -> None:
    mine = [it.laid_out(it.values(it.me, salt)) for salt in range(3)]
    with dist.distributed_c10d._coalescing_manager(group=it.group, async_ops=it.case.asynchronous) as coalesced:
        for tensor in mine:
            dist.all_reduce(tensor, op=it.case.op, group=it.group)
    if it.case.asynchronous:
        coalesced.wait()
    for salt, tensor in enumerate(mine):
        equal(tensor, it.reduced(it.everyone(salt)))


def premultiplied_sum(it: Ranks) -> None:
    if it.case.dtype not in FLOATS:
        return
    mine = it.laid_out(it.values(it.me))
    it.call(dist.all_reduce, mine, op=dist._make_nccl_premul_sum(0.5))
    equal(mine, reduce(torch.add, [values * 0.5 for values in it.everyone()]))


def reduce_to_root(it: Ranks) -> None:
    mine = it.laid_out(it.values(it.me))
    it.call(dist.reduce, mine, group_dst=it.root, op=it.case.op)
    if it.me == it.root:
        equal(mine, it.reduced(it.everyone()))


def broadcast(it: Ranks) -> None:
    mine = it.laid_out(it.values(it.me))
    it.call(dist.broadcast, mine, group_src=it.root)
    equal(mine, it.values(it.root))


def all_gather(it: Ranks) -> None:
    rooms = [it.room() for _ in range(it.size)]
    it.call(dist.all_gather, rooms, it.laid_out(it.values(it.me)))
    for got, expected in zip(rooms, it.everyone(), strict=True):
        equal(got, expected)


def all_gather_uneven(it: Ranks) -> None:
    shapes = [(rank + 1, *it.case.shape) for rank in range(it.size)]
    rooms = [it.room(shape) for shape in shapes]
    it.call(dist.all_gather, rooms, it.laid_out(it.values(it.me, shape=shapes[it.me])))
    for rank, got in enumerate(rooms):
        equal(got, it.values(rank, shape=shapes[rank]))


def all_gather_in_place(it: Ranks) -> None:
    shape = (2, *it.case.shape)
    whole = torch.zeros(2 * it.size, *it.case.shape, dtype=it.case.dtype)
    mine = whole[2 * it.me : 2 * it.me + 2]
    mine.copy_(it.values(it.me, shape=shape))
    it.call(dist.all_gather_single, whole, mine)
    equal(whole, torch.cat(it.everyone(shape=shape)))


def all_gather_single(it: Ranks) -> None:
    shape = (2, *it.case.shape)
    whole = it.room((2 * it.size, *it.case.shape))
    it.call(dist.all_gather_single, whole, it.laid_out(it.values(it.me, shape=shape)))
    equal(whole, torch.cat(it.everyone(shape=shape)))


def reduce_scatter(it: Ranks) -> None:
    shapes = [(part + 1, *it.case.shape) for part in range(it.size)]
    mine = [it.laid_out(it.values(it.me, part, shape)) for part, shape in enumerate(shapes)]
    room = it.room(shapes[it.me])
    it.call(dist.reduce_scatter, room, mine, op=it.case.op)
    equal(room, it.reduced(it.everyone(it.me, shapes[it.me])))


def reduce_scatter_single(it: Ranks) -> None:
    shape = (2 * it.size, *it.case.shape)
    room = it.room((2, *it.case.shape))
    it.call(dist.reduce_scatter_single, room, it.laid_out(it.values(it.me, shape=shape)), op=it.case.op)
    equal(room, it.reduced(it.everyone(shape=shape))[2 * it.me : 2 * it.me + 2])


def reduce_scatter_in_place(it: Ranks) -> None:
    shape = (2 * it.size, *it.case.shape)
    mine = it.values(it.me, shape=shape)
    room = mine[2 * it.me : 2 * it.me + 2]
    it.call(dist.reduce_scatter_single, room, mine, op=it.case.op)
    equal(room, it.reduced(it.everyone(shape=shape))[2 * it.me : 2 * it.me + 2])


def gather(it: Ranks) -> None:
    rooms = [it.room() for _ in range(it.size)] if it.me == it.root else None
    it.call(dist.gather, it.laid_out(it.values(it.me)), rooms, group_dst=it.root)
    for got, expected in zip(rooms or [], it.everyone(), strict=False):
        equal(got, expected)


def scatter(it: Ranks) -> None:
    room = it.room()
    parts = [it.laid_out(part) for part in it.everyone()] if it.me == it.root else None
    it.call(dist.scatter, room, parts, group_src=it.root)
    equal(room, it.values(it.me))


def all_to_all(it: Ranks) -> None:
    shapes = [[(a + b, *it.case.shape) for b in range(it.size)] for a in range(it.size)]
    rooms = [it.room(shapes[rank][it.me]) for rank in range(it.size)]
    mine = [it.laid_out(it.values(it.me, rank, shapes[it.me][rank])) for rank in range(it.size)]
    it.call(dist.all_to_all, rooms, mine)
    for rank, got in enumerate(rooms):
        equal(got, it.values(rank, it.me, shapes[rank][it.me]))


def all_to_all_single_uneven(it: Ranks) -> None:
    rows = [[(a + 2 * b + it.case.seed) % 3 for b in range(it.size)] for a in range(it.size)]
    sent, received = rows[it.me], [rows[rank][it.me] for rank in range(it.size)]
    inputs = [it.values(rank, shape=(sum(rows[rank]), *it.case.shape)) for rank in range(it.size)]
    room = it.room((sum(received), *it.case.shape))
    it.call(dist.all_to_all_single, room, it.laid_out(inputs[it.me]), received, sent)
    equal(room, torch.cat([inputs[rank].split(rows[rank])[it.me] for rank in range(it.size)]))


def all_to_all_single(it: Ranks) -> None:
    shape = (2 * it.size, *it.case.shape)
    room = it.room(shape)
    it.call(dist.all_to_all_single, room, it.laid_out(it.values(it.me, shape=shape)))
    equal(room, torch.cat([part[2 * it.me : 2 * it.me + 2] for part in it.everyone(shape=shape)]))


def ring(it: Ranks) -> None:
    """Everyone sends to the next rank and receives from the one before, two messages that overtake by tag."""
    after, before = (it.me + 1) % it.size, (it.me - 1) % it.size
    rooms = [it.room(), it.room()]
    operations = [
        dist.P2POp(dist.isend, it.laid_out(it.values(it.me, salt)), it.members[after], it.group, tag=salt) for salt in (0, 1)
    ] + [dist.P2POp(dist.irecv, rooms[salt], it.members[before], it.group, tag=salt) for salt in (1, 0)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    for salt, got in enumerate(rooms):
        equal(got, it.values(before, salt))


def from_anyone(it: Ranks) -> None:
    arrived = {}
    if it.me == it.root:
        for _ in range(it.size - 1):
            room = it.room()
            arrived[dist.get_group_rank(it.group, dist.recv(room, group=it.group))] = room
    else:
        dist.send(it.laid_out(it.values(it.me)), group=it.group, group_dst=it.root)
    dist.barrier(it.group)
    for sender, got in arrived.items():
        equal(got, it.values(sender))
    assert it.me != it.root or arrived.keys() == set(range(it.size)) - {it.me}


COLLECTIVES: list[Callable[[Ranks], None]] = [
    all_reduce,
    all_reduce_coalesced,
    premultiplied_sum,
    reduce_to_root,
    broadcast,
    all_gather,
    all_gather_uneven,
    all_gather_in_place,
    all_gather_single,
    reduce_scatter,
    reduce_scatter_single,
    reduce_scatter_in_place,
    gather,
    scatter,
    all_to_all,
    all_to_all_single_uneven,
    all_to_all_single,
    ring,
    from_anyone,
]


def check(examples: int) -> dict[str, str]:
    """What failed, by collective."""
    warnings.simplefilter("ignore")
    size, rank = dist.get_world_size(), dist.get_rank()
    reversed_pair = dist.new_group([size - 1, 0])
    groups = {True: dist.group.WORLD, False: reversed_pair}
    return {
        collective.__name__: failure
        for collective in COLLECTIVES
        if (failure := first_failure(collective, groups, size, rank, examples))
    }


def first_failure(collective: Callable[[Ranks], None], groups: dict[bool, Any], size: int, rank: int, examples: int) -> str:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(cases(size))
    def example(case: Case) -> None:
        failure = ""
        if case.whole_world or rank in (0, size - 1):
            try:
                collective(Ranks(case, groups))
            except Exception as error:
                failure = f"{case}: {type(error).__name__}: {error}"
        failures = [text for text in MPI.COMM_WORLD.allgather(failure) if text]
        assert not failures, failures[0]

    try:
        example()
    except AssertionError as error:
        return str(error)
    return ""
