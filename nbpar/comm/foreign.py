"""torch's own backends, gloo and nccl. They wait in C++, where no poll can be ended, but not without their connections:

gloo    its sockets are shut down: whatever is under way on them fails at once, at both ends
nccl    its communicators are aborted
set-up  ranks meet at a store, which is waited for by polls
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd import graph
from torch.distributed import distributed_c10d as c10d
from torch.distributed import utils
from torch.nn.parallel import distributed as parallel

from ..display.calls import name_call
from ..errors import PeerFailed
from .state import state

WAITED = "_nbpar_waited"  # attribute of an error: the call that failed, in words
SPEAKERS = ("gloo/", "NCCL")  # what errors of these backends contain
NEWS = 0.5  # seconds that the kernel's word may come later than the end of a connection
torchs: Any = c10d._new_process_group_helper


def create(*args: Any, **kwargs: Any) -> Any:
    """torch's own way to make a process group; its sockets are those that were not there before."""
    before = set(sockets())
    try:
        return torchs(*args, **kwargs)
    finally:
        now = set(sockets())
        state.sockets = (state.sockets & now) | (now - before)


def install(function: Any = create) -> None:
    """From now on it is known which sockets belong to process groups."""
    module: Any = c10d
    module._new_process_group_helper = function


def remove() -> None:
    install(torchs)


def sockets() -> Iterator[tuple[int, int]]:
    """Those of this process: device and inode, which are the same for all descriptors of a socket."""
    for name in os.listdir("/dev/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(found.st_mode):
            yield found.st_dev, found.st_ino


def cut() -> None:
    """End what is under way on torch's own backends, and all that is tried later. Callable from any thread."""
    if state.sockets:
        for name in os.listdir("/dev/fd"):
            shut_down(int(name))
    for group in list(c10d._world.pg_map):
        if "nccl" in c10d._world.pg_backend_config.get(group, ""):  # empty: the main thread has just destroyed it
            group.abort()


def shut_down(descriptor: int) -> None:
    """A process group's connection; other descriptors, and sockets that listen, stay as they are."""
    try:
        own = os.dup(descriptor)  # the group may close its own at any moment
    except OSError:
        return
    found = os.fstat(own)
    if not stat.S_ISSOCK(found.st_mode) or (found.st_dev, found.st_ino) not in state.sockets:
        os.close(own)
        return
    with socket.socket(fileno=own) as connection:
        try:
            connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # it listens, or has ended
            pass


def failed(error: BaseException) -> bool:
    """Whether an operation of these backends raised this."""
    return isinstance(error, RuntimeError) and any(speaker in str(error) for speaker in SPEAKERS)


def why_cut() -> str | None:
    """After a failed operation: why the kernel has ended this rank's waiting, None if it has not. A connection may end first."""
    end = time.monotonic() + NEWS
    while state.reason is None and time.monotonic() < end:
        time.sleep(0.01)
    return state.reason


def note_place(error: BaseException, is_cell: Callable[[str], bool]) -> None:
    """Remember where a failed operation was called, before the frames that tell it are hidden."""
    if failed(error):
        setattr(error, WAITED, place(error, is_cell, "wait"))
    elif isinstance(error, PeerFailed):
        setattr(error, WAITED, place(error, is_cell))


def place(error: BaseException, is_cell: Callable[[str], bool], otherwise: str = "") -> str:
    """Where a failed operation was called: 'in all_reduce, line 6', empty if that cannot be told.

    otherwise: the operation's name where the cell waited for one that it had begun before.
    """
    if said := getattr(error, WAITED, ""):
        return str(said)
    operation, line, traceback = "", 0, error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_cell(code.co_filename):
            operation, line = "", traceback.tb_lineno
        elif not operation:
            operation = operation_of(code.co_filename, code.co_name)
        traceback = traceback.tb_next
    return name_call(operation or otherwise, None, None, line) if line and (operation or otherwise) else ""


def operation_of(filename: str, function: str) -> str:
    """By the function of torch that calls it."""
    if filename == c10d.__file__:
        return function
    if filename in (parallel.__file__, utils.__file__):
        return "DistributedDataParallel"
    return "backward" if filename == graph.__file__ else ""
