"""Light ranks: they speak the control protocol and compute nothing, so that many fit on one machine. No torch, no MPI.

`python -m benchmarks.light N FILE` stands in for `mpiexec -n N`. FILE holds what a real rank answers to a cell that changes
nothing: frames for rank 0, and for the others. A cell whose code is a number prints that many lines.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import zmq

from nbpar.ranks.channel import Message, connect, receive, send
from nbpar.ranks.guard import die_with_parent
from nbpar.ranks.task import Reply

LINE = "epoch 1: loss 0.3125\n"


def serve(rank: int, size: int, answers: tuple[list[bytes], list[bytes]]) -> None:
    context = zmq.Context()
    main, side, guard = (connect(role, rank, context) for role in ("main", "side", "guard"))
    versions = {"mpi": "none", "torch": "none", "python": "", "nbpar": ""}
    send(guard, Message("guard", {}))
    send(main, Message("ready", {"pid": os.getpid(), "host": "here", "size": size, "threads": 1, "cores": 1, **versions}))
    produced = 0
    while (message := receive(main)).kind != "exit":
        if message.kind == "task":
            lines = int(message.header.code)
            if lines:
                text = LINE * lines
                produced += len(text)
                send(side, Message("output", [("stdout", text)]))
            send(main, Message("reply", Reply(0.0, produced), answers[min(rank, 1)]))


def main(size: int, answers: tuple[list[bytes], list[bytes]]) -> None:
    """Ends when all ranks have ended."""
    children = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            die_with_parent()
            try:
                serve(rank, size, answers)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    answers: Any = pickle.loads(Path(sys.argv[2]).read_bytes())
    main(int(sys.argv[1]), answers)
