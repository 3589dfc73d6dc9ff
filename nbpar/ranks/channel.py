"""The control channel: what kernel and ranks say to each other, and over which sockets.

    kernel                                   rank r
    cells  ROUTER  ←── cell, reply ──→  DEALER  main thread
    side   ROUTER  ←── output, abort ─→  DEALER  I/O thread   ("side-r")
                   ←── exit, kill ────→  DEALER  guard         ("guard-r")

A message is a kind and a header of plain data, and frames of bytes, of which only small ones are copied. Headers are pickles, so
nobody else may get as far as sending one:

    on one host     Unix sockets in a folder that only this user may enter: whoever can connect could as well debug the process
    across hosts    TCP with CURVE: a handshake needs the hub's public key, which is made for this world and given to its ranks
                    alone, by environment; so that key is the secret. Connections that do not shake hands are dropped.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import zmq

from nbpar.ranks.guard import ADDRESS, FOLDER

KEY = "NBPAR_KEY"  # environment variable with the hub's public key, across hosts
HANDSHAKE = 2000  # milliseconds that a connection may take to say who it is
# Milliseconds, across hosts: between two signs of life; without one until the other end counts as gone.
HEARTBEAT, SILENCE = 500, 2500
INLINE = 1 << 12  # bytes; a smaller frame is copied into the header: a part of its own costs as much as all else of the message
MORE, NOW = int(zmq.SNDMORE), int(zmq.NOBLOCK)  # members of an enum take longer to combine than a frame takes to send
SEND = zmq.backend.Socket.send  # that of zmq.Socket first looks, in Python, for what only other kinds of sockets have


@dataclass(frozen=True)
class Message:
    """One message. `source` is the sender's role and rank; header is plain data; frames are bytes-likes."""

    kind: str
    header: Any = None
    frames: Sequence[Any] = field(default=(), repr=False)
    role: str = ""
    rank: int = -1

    @cached_property
    def parts(self) -> list[zmq.Frame]:
        """What is sent; pickled and wrapped once, however many ranks get it."""
        small = [bytes(frame) if memoryview(frame).nbytes < INLINE else None for frame in self.frames]
        large = [frame for frame, copy in zip(self.frames, small, strict=True) if copy is None]
        return [zmq.Frame(part) for part in (pickle.dumps((self.kind, self.header, small), protocol=5), *large)]


@cache
def identity(role: str, rank: int) -> bytes:
    """By which a hub knows a rank's socket."""
    return f"{role}-{rank}".encode()


@cache
def sender(identity: bytes) -> tuple[str, int]:
    """The role and rank of an identity."""
    role, _, rank = identity.decode().partition("-")
    return role, int(rank)


def decode(parts: list[zmq.Frame], role: str = "", rank: int = -1) -> Message:
    kind, header, small = pickle.loads(parts[0].buffer)
    large = iter(parts[1:])
    return Message(kind, header, [next(large).buffer if copy is None else copy for copy in small], role, rank)


def put(socket: zmq.Socket[bytes], parts: Sequence[Any]) -> None:
    for part in parts[:-1]:
        SEND(socket, part, MORE, False)
    SEND(socket, parts[-1], 0, False)


def take(socket: zmq.Socket[bytes], flags: int = 0) -> list[zmq.Frame]:
    parts = [socket.recv(flags, False)]
    while parts[-1].more:
        parts.append(socket.recv(flags, False))
    return parts


class Hub:
    """The kernel's end. Everything is read by the thread that waits for a cell; there is no other.

    interface: None for Unix sockets, else the address of the network interface to listen on. `environment` leads ranks here.
    """

    def __init__(self, interface: str | None = None) -> None:
        self.folder = tempfile.mkdtemp(prefix="nbpar-")  # 0700 from the start
        self.environment: dict[str, str] = {}
        self._context = zmq.Context()
        self._keys = zmq.curve_keypair() if interface else None
        self._sockets = {name: self._socket() for name in ("cells", "side")}
        self._bind(interface)
        self._nudged, self._nudger = os.pipe()
        os.set_blocking(self._nudger, False)
        self._poller = zmq.Poller()
        for each in (*self._sockets.values(), self._nudged):
            self._poller.register(each, zmq.POLLIN)

    def _socket(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
        if self._keys:
            keep_alive(socket)
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self._keys
        return socket

    def _bind(self, interface: str | None) -> None:
        if not self._keys:
            for name, socket in self._sockets.items():
                socket.bind(f"ipc://{self.folder}/{name}")
            self.environment[ADDRESS] = f"ipc://{self.folder}"
            return
        ports = [socket.bind_to_random_port(f"tcp://{interface}") for socket in self._sockets.values()]
        self.environment[ADDRESS] = f"tcp://{interface} {ports[0]} {ports[1]}"
        self.environment[KEY] = self._keys[0].decode()

    def send(self, role: str, rank: int, message: Message) -> bool:
        """False if that rank is not connected (any more)."""
        socket = self._sockets["cells" if role == "main" else "side"]
        try:
            put(socket, [identity(role, rank), *message.parts])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def receive(self, timeout: float) -> Iterator[Message]:
        """Messages that are there, side channel first so that output precedes the reply; waits up to `timeout` seconds."""
        ready = dict(self._poller.poll(max(0, int(timeout * 1000))))
        if not ready:
            return
        if self._nudged in ready:
            os.read(self._nudged, 4096)
        side, cells = self._sockets["side"], self._sockets["cells"]
        for socket in (side, cells) if cells in ready else (side,):
            while True:
                try:
                    who, *parts = take(socket, NOW)
                except zmq.Again:  # dear, but once for all that is there
                    break
                yield decode(parts, *sender(who.bytes))

    def nudge(self) -> None:
        """Ends the waiting of `receive`, of which a signal alone does not."""
        try:
            os.write(self._nudger, b"1")
        except OSError:  # enough is there to be read, or nobody waits any more
            pass

    def close(self) -> None:
        ends, self._nudged, self._nudger = (
            (self._nudged, self._nudger),
            -1,
            -1,
        )  # a signal may still come, and the numbers be others'
        for descriptor in ends:
            os.close(descriptor)
        for socket in self._sockets.values():
            socket.close(0)
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)


def connect(role: str, rank: int, context: zmq.Context[Any] | None = None) -> zmq.Socket[bytes]:
    """A rank's socket to its kernel for one of the roles main, side and guard."""
    socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity(role, rank))
    socket.setsockopt(zmq.LINGER, 500)
    if key := os.environ.get(KEY):
        keep_alive(socket)
        socket.curve_serverkey = key.encode()
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.connect(endpoint("cells" if role == "main" else "side"))
    return socket


def keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Across hosts a connection can end without a word: the other host was cut off, or fell."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE)
    socket.setsockopt(zmq.HEARTBEAT_TTL, SILENCE)


def endpoint(name: str) -> str:
    """Where the hub's socket of that name is, by this process's environment."""
    place, *ports = os.environ[ADDRESS].split()
    return f"{place}:{ports[0 if name == 'cells' else 1]}" if ports else f"{place}/{name}"


def own_address() -> str:
    """The address by which this rank's host reaches the kernel, and other hosts reach it; empty with Unix sockets."""
    from nbpar.ranks.hosts import route

    place = os.environ[ADDRESS].split()[0]
    return route(place.removeprefix("tcp://")) if place.startswith("tcp://") else ""


def folder() -> str:
    """Where this rank's own sockets go: the hub's folder, or one on this host, of this rank's guard."""
    return os.environ[FOLDER] or os.environ[ADDRESS].removeprefix("ipc://")


def open_door(rank: int, context: zmq.Context[Any] | None = None) -> zmq.Socket[bytes]:
    """A rank's socket for other processes of this user that want to know where it is (`python -m nbpar where`)."""
    socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"ipc://{folder()}/where-{rank}")
    return socket


def send(socket: zmq.Socket[bytes], message: Message) -> None:
    put(socket, message.parts)


def receive(socket: zmq.Socket[bytes]) -> Message:
    return decode(take(socket))
