"""One process runs the cell: a copy of rank 0, made by fork before the cell. Nothing that it does stays but what it tells.

Its output is dropped. Files that it writes go to a private folder, as those of ranks other than 0 do (parallel/files.py).
What it does beyond the machine's files, over a network say, is done twice.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import pickle
import select
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from nbpar.check.evidence import Evidence, Witness
from nbpar.comm.waiting import check as must_not_wait
from nbpar.parallel.files import written_once
from nbpar.ranks.guard import die_with_parent
from nbpar.ranks.outlet import Outlet
from nbpar.values.random_state import RandomStates

LOOK = 0.05  # seconds between two looks at whether the waiting must end


def replay(
    cell: Callable[[], str | None], witness: Witness, outlet: Outlet, code: str, namespace: Mapping[str, Any]
) -> Evidence | str:
    """What one process has where `witness` looks, or why that is not known.

    cell: runs it; how it failed, if it did. Raises KeyboardInterrupt, and PeerFailed if another rank has failed meanwhile.
    """
    if why := cannot_be_copied(code, namespace):
        return why
    with tempfile.TemporaryDirectory(prefix="nbpar-check-") as folder:
        reader, writer = os.pipe()
        states = RandomStates().capture()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process do nothing that the copy needs
            copy = os.fork()
        if not copy:
            os.close(reader)
            RandomStates().restore(states)  # a fork gives the module `random` a new seed
            run_as_copy(cell, witness, outlet, folder, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            try:
                while not select.select([pipe], [], [], LOOK)[0]:
                    must_not_wait()
                told: Evidence | str = pickle.load(pipe)
            except (EOFError, pickle.UnpicklingError):
                told = ""
            finally:
                os.kill(copy, signal.SIGKILL)  # it is not reaped yet: the id is its own
                _, status = os.waitpid(copy, 0)
    return told or f"the process that replayed the cell ended in {ended(status)}"


def ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def cannot_be_copied(code: str, namespace: Mapping[str, Any]) -> str:
    """Why a fork of this process could not run the cell; empty if it can."""
    if torch.cuda.is_initialized():
        return "rank 0 uses a GPU, and a process that does so cannot be copied"
    values = list(namespace.values())
    if "mpi4py" in code or any((getattr(value, "__module__", None) or "").startswith("mpi4py") for value in values):
        return "the cell calls mpi4py, and one process has nobody to talk to"
    if any(getattr(value, "_iterator", None) is not None and getattr(value, "num_workers", 0) for value in values):
        return "a loader has worker processes that are at work for the rank"
    return ""


def run_as_copy(cell: Callable[[], str | None], witness: Witness, outlet: Outlet, folder: str, writer: int) -> NoReturn:
    """In the copy: runs the cell until the witness has seen enough, and ends the process."""
    status = 1

    def tell(what: Evidence | str) -> NoReturn:
        with open(writer, "wb") as pipe:
            pickle.dump(what, pipe, protocol=5)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(0)

    try:
        be_alone(outlet)
        tempfile.tempdir = folder
        witness.then = lambda: tell(witness.evidence or "")
        with written_once(1, tempfile.mkdtemp()), witness.watching():
            failure = cell()
            if failure is None:
                witness.finish()
            tell(f"there it {failure}")
    except BaseException as error:
        tell(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def be_alone(outlet: Outlet) -> None:
    """A process without a world, without output, and without the threads that a fork leaves behind."""
    die_with_parent()
    outlet.silence()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)  # the threads of OpenMP's pool are gone, and it would wait for them
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]  # they are the rank's
    if dist.is_initialized():
        dist.distributed_c10d._world.default_pg = None
