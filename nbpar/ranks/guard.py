"""The guard: a rank's parent process. It knows how the rank ended, and ends it when the kernel is gone.

A rank can be stuck in C code or be killed; something outside must say by which signal, and must see the kernel's death even then.
So each launched process forks before anything heavy is imported: the child becomes the rank, the parent stays as its guard
(some 15 MiB). The guard interrupts the rank where its own threads cannot, as in a regular expression without end; reports its exit
over the control channel; kills its process group when the kernel is gone; and ends with its exit status, so that
the launcher sees what happened.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
from typing import Any

ADDRESS = "NBPAR_ADDRESS"  # environment variable that leads a rank to its kernel: a folder, or host and two ports
KERNEL = "NBPAR_KERNEL"  # environment variable "host:pid" of the kernel
FOLDER = "NBPAR_FOLDER"  # environment variable with a folder for the rank's sockets, where it cannot use the kernel's
OUTLIVE = "NBPAR_OUTLIVE"  # environment variable: the launcher started the kernel too, and would end it with a guard
INTERRUPT = struct.Struct("qq")  # cell, number of the interrupt
GRACE = 0.3  # seconds for the last message to leave
# Of this host; of this container, in a new hierarchy of control groups or an old one.
MEMORY_RECORDS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def fork_guarded(rank: int) -> mmap.mmap:
    """Returns in the child, which becomes the rank: memory in which `interrupted` finds what the guard interrupts.

    The parent never returns.
    """
    shared = mmap.mmap(-1, INTERRUPT.size)
    os.environ[FOLDER] = "" if os.environ[ADDRESS].startswith("ipc://") else tempfile.mkdtemp(prefix="nbpar-")
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # from MPICH's launcher when another process has ended
    child = os.fork()
    if child == 0:
        os.setsid()
        die_with_parent()
        return shared
    try:
        status = watch(child, rank, shared)
    finally:
        kill_group(child)
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
    os._exit(status)


def die_with_parent() -> None:
    """Linux: the kernel of the system kills this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def interrupted(shared: mmap.mmap) -> tuple[int, int]:
    """The newest cell that the guard was told to interrupt, and that interrupt's number."""
    cell, number = INTERRUPT.unpack(shared[:])
    return cell, number


def watch(child: int, rank: int, shared: mmap.mmap) -> int:
    """Waits until the rank ends or the kernel is gone; the rank's exit status for the launcher."""
    import zmq

    from nbpar.ranks.channel import Message, connect, folder, receive, send

    socket = connect("guard", rank)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    send(socket, Message("guard", {"pid": os.getpid(), "child": child}))
    ends = {name: pidfd(pid) for name, pid in (("child", child), ("kernel", kernel_pid()))}
    poller = zmq.Poller()
    for source in (socket, monitor, *(descriptor for descriptor in ends.values() if descriptor is not None)):
        poller.register(source, zmq.POLLIN)
    launcher, kills = os.getppid(), out_of_memory_kills()

    def alone(events: dict[Any, int]) -> bool:
        """The kernel or the launcher is gone."""
        if not (monitor in events or ends["kernel"] in events or os.getppid() != launcher):
            return False
        if os.environ[ADDRESS].startswith("ipc://"):
            shutil.rmtree(folder(), ignore_errors=True)  # of the sockets
        return True

    period = 1000 if ends["child"] is not None else 50
    while True:
        events: dict[Any, int] = dict(poller.poll(period))
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            starved = code == -signal.SIGKILL and out_of_memory_kills() > kills
            send(socket, Message("exit", {"code": code, "peak": usage.ru_maxrss * 1024, "out_of_memory": starved}))
            if OUTLIVE not in os.environ:
                time.sleep(GRACE)
                return code if code >= 0 else 128 - code
            for source in filter(None, (socket, ends["child"])):
                poller.unregister(source)
            while not alone(dict(poller.poll(1000))):
                pass
            return 0
        if alone(events):
            return 1
        if socket in events:
            message = receive(socket)
            if message.kind == "interrupt":
                shared[:] = INTERRUPT.pack(*message.header)
                os.kill(child, signal.SIGINT)
            elif message.kind == "kill":
                os.kill(child, message.header["signal"])


def out_of_memory_kills() -> int:
    """How many processes the system has killed for want of memory."""
    total = 0
    for path in MEMORY_RECORDS:
        try:
            with open(path) as lines:
                total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
        except (OSError, ValueError):
            pass
    return total


def kernel_pid() -> int | None:
    """The kernel's process id if it runs on this host."""
    host, _, pid = os.environ.get(KERNEL, "").partition(":")
    return int(pid) if host == os.uname().nodename else None


def pidfd(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends, where the system has such a thing."""
    if pid is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def kill_group(child: int) -> None:
    """The rank led its own session: its data loaders and shell commands end with it."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
