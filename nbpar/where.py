"""Where the ranks are: each one's Python stack and the collective it waits in, asked from outside the notebook."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from nbpar.ranks.channel import receive

PATIENCE = 1000  # milliseconds


def doors() -> Iterator[Path]:
    """The sockets of this user's ranks on this host."""
    for folder in sorted(Path(tempfile.gettempdir()).glob("nbpar-*")):
        if folder.stat().st_uid == os.getuid():
            yield from sorted(folder.glob("where-*"))


def ask(door: Path) -> dict[str, Any] | None:
    """What a rank says of itself; None if it does not answer, as in a C call that keeps Python's lock."""
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{door}")
        socket.send(b"where")
        return receive(socket).header if socket.poll(PATIENCE) else None


def describe(rank: str, answer: dict[str, Any] | None) -> str:
    if answer is None:
        return f"rank {rank}: does not answer: it sits in a C call"
    wait = f" {answer['wait']}" if answer["wait"] else ""
    return f"rank {rank} (process {answer['pid']}){wait}\n" + "".join(answer["stack"])


def main(_arguments: list[str]) -> int:
    """Prints where every rank of this user is. 1 if there is none."""
    found = list(doors())
    for door in found:
        print(describe(door.name.removeprefix("where-"), ask(door)))
    if not found:
        print("No ranks of yours run on this host.")
    return 0 if found else 1
