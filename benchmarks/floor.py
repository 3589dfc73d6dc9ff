"""The least that a word to N processes and back costs on this machine: bare Unix sockets, one byte each way, nothing computed.

flat: one process writes to all and reads from all. tree: it speaks to FAN of them, each of which speaks to its share of the others.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Sequence

FAN = 8
ROUNDS = 50


def serve(up: socket.socket, below: Sequence[socket.socket]) -> None:
    """Hands each word on, and an answer up once all below have answered. Ends with the one above."""
    while word := up.recv(1):
        for each in below:
            each.send(word)
        for each in below:
            each.recv(1)
        up.send(word)


def child(inherited: Sequence[socket.socket], subordinates: int) -> socket.socket:
    """A new process that serves; the way to it. inherited: what it must not keep open."""
    mine, its = socket.socketpair()
    if os.fork() == 0:
        try:
            for each in (mine, *inherited):
                each.close()
            below: list[socket.socket] = []
            for _ in range(subordinates):
                below.append(child([its, *below], 0))
            serve(its, below)
        finally:
            os._exit(0)
    its.close()
    return mine


def ping(size: int, *, tree: bool) -> float:
    """ms until `size` processes have heard a word and all have answered, the median of ROUNDS."""
    heads = min(FAN, size) if tree else size
    below: list[socket.socket] = []
    for head in range(heads):
        below.append(child(below, len(range(head, size, heads)) - 1))
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for each in below:
            each.send(b"?")
        for each in below:
            each.recv(1)
        taken.append((time.perf_counter() - begin) * 1e3)
    for each in below:
        each.close()
    for _ in below:
        os.wait()
    return statistics.median(taken)
