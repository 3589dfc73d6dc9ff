"""Asynchronous work overlaps with what the rank does meanwhile, and other threads run while a rank waits."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI

from nbpar import comm
from nbpar.comm.state import state
from tests.ranks import run_ranks


def future_completes_while_the_rank_computes() -> bool:
    """Rank 0 never waits: it computes until the future's callback has run. Rank 1 joins later."""
    big = torch.full((1_000_000,), 1.0 + dist.get_rank())
    done = threading.Event()
    totals: list[float] = []
    if dist.get_rank() == 1:
        time.sleep(0.05)
    future = dist.all_reduce(big, async_op=True).get_future()
    chained = future.then(lambda future: (totals.append(future.value()[0][0].item()), done.set()))
    end = time.monotonic() + 20
    while not done.is_set() and time.monotonic() < end:
        sum(range(1000))
    chained.wait()
    return totals == [3.0]


def works_that_nobody_waits_for_do_not_pile_up() -> int:
    group = dist.group.WORLD
    for turn in range(1000):
        if dist.get_rank() == 0:
            dist.isend(torch.ones(1), dst=1)
        else:
            dist.recv(torch.ones(1), src=0)
        if turn % 20 == 0:
            dist.barrier()
    return len(group.live)


def buffers_live_until_the_operation_is_done() -> bool:
    """A tensor that the user drops stays until MPI is done with it, and no longer."""
    tensor = torch.ones(1_000_000)
    dropped = weakref.ref(tensor)
    if dist.get_rank() == 0:
        dist.isend(tensor, dst=1)
        del tensor
        gc.collect()
        held = dropped() is not None
        dist.barrier()
        dist.barrier()
        dist.group.WORLD._sweep()
        return held and dropped() is None
    dist.barrier()
    time.sleep(0.02)
    room = torch.zeros(1_000_000)
    dist.recv(room, src=0)
    dist.barrier()
    return bool(room.sum() == 1_000_000)


def another_thread_runs_while_a_rank_waits() -> int:
    turns = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            sum(range(100))
            turns += 1

    if dist.get_rank() == 1:
        time.sleep(0.3)
        dist.send(torch.ones(1), dst=0)
        return 1000
    thread = threading.Thread(target=count)
    thread.start()
    dist.recv(torch.ones(1), src=1)
    stop.set()
    thread.join()
    return turns


def a_wait_can_time_out() -> str:
    work = dist.barrier(async_op=True) if dist.get_rank() == 0 else None
    text = ""
    if work is not None:
        try:
            work.wait(timedelta(milliseconds=20))
        except TimeoutError as error:
            text = str(error)
        dist.send(torch.ones(1), dst=1)
        work.wait()
    else:
        dist.recv(torch.ones(1), src=0)
        dist.barrier()
    return text


def an_interrupt_ends_a_wait() -> bool:
    """As the kernel's interrupt does; the operation is still there to be waited for afterwards."""
    room = torch.zeros(1)
    if dist.get_rank() == 0:
        work = dist.irecv(room, src=1)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            work.wait()
        except KeyboardInterrupt:
            dist.send(torch.ones(1), dst=1)
            work.wait()
            return room.item() == 1
        return False
    dist.recv(room, src=0)
    dist.send(torch.ones(1), dst=0)
    return True


def the_name_is_taken() -> list[Any]:
    """Everything that takes a backend's name takes `mpi`, before and after the default group is made anew."""
    found = [dist.get_backend(), dist.is_mpi_available(), dist.get_backend(dist.new_group(backend="mpi"))]
    dist.destroy_process_group()
    dist.init_process_group("mpi")
    group = dist.new_group([1], backend="mpi")
    if dist.get_rank() == 1:
        assert dist.get_world_size(group) == 1
        dist.all_reduce(torch.ones(1), group=group)
    dist.destroy_process_group()
    comm.leave()
    comm.join(MPI.COMM_WORLD, "gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    comm.abort("gloo")
    comm.renew()
    dist.all_reduce(total)
    found += [dist.get_backend(), total.item()]
    comm.leave()
    comm.join(MPI.COMM_WORLD)
    return [*found, comm.all_reduce_(torch.ones(2)).tolist(), comm.all_reduce_(torch.ones(2), average=True).tolist()]


PROGRAMS = [
    future_completes_while_the_rank_computes,
    works_that_nobody_waits_for_do_not_pile_up,
    buffers_live_until_the_operation_is_done,
    another_thread_runs_while_a_rank_waits,
    a_wait_can_time_out,
    an_interrupt_ends_a_wait,
    the_name_is_taken,
]


def run_programs() -> list[dict[str, Any]]:
    """Results by program: with a core for each rank, without, and with cores that are lent."""
    results = []
    for state.crowded, state.lent in ((False, False), (True, False), (False, True)):
        results.append({program.__name__: program() for program in PROGRAMS})
    return results


def test_work_goes_on_by_itself() -> None:
    for first, second in zip(*run_ranks(2, run_programs), strict=True):
        for name in (
            "future_completes_while_the_rank_computes",
            "buffers_live_until_the_operation_is_done",
            "an_interrupt_ends_a_wait",
        ):
            assert first[name] and second[name], name
        assert first["works_that_nobody_waits_for_do_not_pile_up"] < 200
        assert first["another_thread_runs_while_a_rank_waits"] > 100
        assert first["a_wait_can_time_out"] == "nothing arrived within 0.02 s"
        assert first["the_name_is_taken"] == ["mpi", True, "mpi", "gloo", 4.0, [2.0, 2.0], [1.0, 1.0]]
