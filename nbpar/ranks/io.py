"""A rank's I/O thread: output goes out, an abort or an interrupt comes in, whatever the main thread is doing."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from nbpar.hang import Wait
from nbpar.ranks import channel
from nbpar.ranks.outlet import Outlet

if TYPE_CHECKING:
    from nbpar.comm import Asleep
    from nbpar.ranks.interrupt import Interrupt
    from nbpar.ranks.progress import Progress
    from nbpar.ranks.steps import Steps

BATCH = 0.003  # seconds between two sends: a flood of prints travels in few messages
UNHEARD = 0.2  # seconds after an interrupt


class IOThread(threading.Thread):
    def __init__(self, rank: int, outlet: Outlet, interrupt: Interrupt) -> None:
        super().__init__(name="nbpar-io", daemon=True)
        self._outlet, self._interrupt = outlet, interrupt
        self._rank = rank
        self.messages: deque[channel.Message] = deque()  # from the main thread, which nudges the outlet
        self.steps: Steps | None = None  # once torch is there
        self.progress: Progress | None = None
        self._asleep: Asleep | None = None
        self._lock = threading.Lock()
        self._running: int | None = None  # the cell whose waits an abort or an interrupt ends
        self._aborted: tuple[int, str] = 0, ""  # a cell, which may be yet to come, and why

    def begin(self, cell: int) -> None:
        """The main thread has been given a cell."""
        with self._lock:
            self._running = cell
            self._abort()

    def end(self) -> None:
        """It is about to reply: an abort that comes later is void, as what follows is not that cell's."""
        with self._lock:
            self._running = None

    def _abort(self) -> None:
        cell, reason = self._aborted
        if cell == self._running:
            from nbpar import comm

            comm.abort(reason)

    def run(self) -> None:
        self._socket = socket = channel.connect("side", self._rank)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        door = channel.open_door(self._rank)
        poller.register(door, zmq.POLLIN)
        for descriptor in self._outlet.descriptors:
            poller.register(descriptor, zmq.POLLIN)
        talk = {socket, door}
        while True:
            events = dict(poller.poll(self.progress.pause if self.progress else None))
            if socket in events:
                self._try(self._obey, channel.receive(socket))
            if door in events:
                door.recv()
                channel.send(door, channel.Message("where", self._try(self._where)))  # an answer in any case: it is a REP socket
            if events.keys() - talk:
                self._outlet.drain()
                if items := self._outlet.take():
                    channel.send(socket, channel.Message("output", items))
                    time.sleep(BATCH)
            while self.messages:
                channel.send(socket, self.messages.popleft())
            if self.progress and (pulses := self.progress.pulses()):
                channel.send(socket, channel.Message("progress", pulses))

    def _try(self, act: Callable[..., Any], *given: Any) -> Any:
        """What it gives, or None if it fails: the main thread goes on meanwhile, and what is looked at may change or go. This
        thread must not end: without it no output leaves the rank, and the kernel waits for ever."""
        try:
            return act(*given)
        except Exception:
            self._outlet.put("stderr", traceback.format_exc())
            return None

    def _obey(self, message: channel.Message) -> None:
        if message.kind == "abort":
            with self._lock:
                self._aborted = message.header
                self._abort()
        elif message.kind == "interrupt":
            self._interrupt.request(*message.header)
            threading.Timer(UNHEARD, self._end_deaf_wait, message.header).start()
        elif message.kind == "watch" and self.progress:
            self.progress.watch(message.header)
        elif message.kind == "where":
            channel.send(self._socket, channel.Message("where", self._waiting()))
        elif message.kind == "hold" and self.steps:
            channel.send(self._socket, channel.Message("held", self.steps.hold(message.header)))
        elif message.kind == "until" and self.steps:
            self.steps.until(*message.header)

    def _end_deaf_wait(self, cell: int, number: int) -> None:
        """torch's own backends wait in C++ and do not notice an interrupt."""
        with self._lock:
            if cell == self._running and self._interrupt.pending(cell, number):
                from nbpar import comm

                comm.foreign.cut()

    def _where(self) -> dict[str, Any]:
        """What the main thread does: the collective that it waits in, and its Python stack."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        return {"pid": os.getpid(), "wait": self._waiting(), "stack": traceback.format_stack(frame) if frame else []}

    def _waiting(self) -> Wait | None:
        """The call that the main thread is in, if it is in one."""
        comm = sys.modules.get("nbpar.comm")
        if not comm:
            return None
        call = comm.trace.current()
        if call is None:
            self._asleep = self._asleep or comm.Asleep()
            return self._asleep.look()
        return Wait(
            call.group, call.sequence, call.operation, call.shape, call.line, call.seconds,
            call.own, call.blocks, call.peer, comm.trace.members.get(call.group, ()), comm.trace.begun(),
        )  # fmt: skip
