"""Where the ranks are: each one's Python stack and the collective it waits in, asked from outside the notebook."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from nbpar.ranks.channel import receive

PATIENCE = 1.0  # seconds


def doors() -> Iterator[Path]:
    """The sockets of this user's ranks on this host."""
    for folder in sorted(Path(tempfile.gettempdir()).glob("nbpar-*")):
        if folder.stat().st_uid == os.getuid():
            yield from filter(attended, sorted(folder.glob("where-*")))


def attended(door: Path) -> bool:
    """False for what a rank left behind that was killed together with its kernel."""
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(door))
        except OSError:
            return False
    return True


def ask(doors: list[Path]) -> list[dict[str, Any] | None]:
    """What each rank says of itself; None if it does not answer, as in a C call that keeps Python's lock. All are asked at once."""
    with zmq.Context() as context:
        callers: list[zmq.Socket[bytes]] = [context.socket(zmq.REQ) for _ in doors]
        for caller, door in zip(callers, doors, strict=True):
            caller.setsockopt(zmq.LINGER, 0)
            caller.connect(f"ipc://{door}")
            caller.send(b"where")
        deadline = time.monotonic() + PATIENCE
        answers = [
            receive(caller).header if caller.poll(int(1000 * max(0, deadline - time.monotonic()))) else None for caller in callers
        ]
        for caller in callers:
            caller.close()
    return answers


def describe(rank: str, answer: dict[str, Any] | None) -> str:
    if answer is None:
        return f"rank {rank}: does not answer: it sits in a C call"
    wait = f" {answer['wait']}" if answer["wait"] else ""
    return f"rank {rank} (process {answer['pid']}){wait}\n" + "".join(answer["stack"])


def main(_arguments: list[str]) -> int:
    """Prints where every rank of this user is. 1 if there is none."""
    found = list(doors())
    for door, answer in zip(found, ask(found), strict=True):
        print(describe(door.name.removeprefix("where-"), answer))
    if not found:
        print("No ranks of yours run on this host.")
    return 0 if found else 1
