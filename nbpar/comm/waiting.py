"""A wait is a poll that can be ended: `wait_until(ready)` returns, or raises PeerFailed once `abort` was called.

Every test of an MPI request lets go of the GIL, and `join` shortens the interpreter's switch interval, so that another
thread gets its turn within half a millisecond. A short wait spins, a longer one offers the core to other processes
between polls, a long one sleeps between bursts of polls. Where cores are lent it sleeps between any two polls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..errors import NbparError, PeerFailed
from . import foreign
from .state import state
from .trace import now, trace

Ready = Callable[[], bool]

SPINS, SPINS_IF_CROWDED = 200, 20  # polls before the clock is looked at: some 50 µs, and 5
EAGER = 20e-3  # seconds of polling without a pause, beyond the time that a slow transfer needs
SLOW = 0.5e9  # bytes per second of a slow transfer
NAP = 0.3e-3  # seconds, at most, between two polls of one who has lent its core
SWITCH_INTERVAL = 0.5e-3

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


def abort(reason: str, error: type[NbparError] = PeerFailed) -> None:
    """End every wait of this process, now and until `renew`, with error(reason). Callable from any thread."""
    if state.reason is None:
        state.error, state.reason = error, reason
        foreign.cut()


def ended() -> NbparError:
    """The error of a wait that was ended."""
    reason = str(state.reason)
    if state.error is PeerFailed:
        return PeerFailed(reason, str(trace.current() or ""))
    return state.error(reason)


def check() -> None:
    """Raises PeerFailed, or what `abort` was told, if the process must not wait."""
    if state.reason is not None:
        raise ended()


def lend(on: bool) -> bool:
    """From now on, or no longer, who waits leaves its core to those that work. Gives whether it does: on a crowded host no rank has
    a core to lend."""
    state.lent = on and not state.crowded
    return state.lent


def soon(ready: Ready) -> bool:
    """Whether `ready` becomes true within a few polls."""
    # `any` and a generator would cost half a microsecond.
    for _ in range(SPINS_IF_CROWDED if state.crowded else SPINS):  # noqa: SIM110
        if ready():
            return True
    return False


def wait_until(ready: Ready, nbytes: int = 0, timeout: float = 0.0) -> None:
    """Poll `ready` until it is true. nbytes: bytes of the transfer, which set for how long to poll without a pause.

    timeout: seconds, 0 for none. Raises PeerFailed after `abort`, TimeoutError after `timeout`.
    """
    began = now()
    eager = 0.0 if state.lent else nbytes / SLOW + (0.0 if state.crowded else EAGER)
    while True:
        if ready():  # what is done is handed out, even after an abort: other ranks have it too
            return
        check()
        waited = now() - began
        if timeout and waited > timeout:
            raise TimeoutError(f"nothing arrived within {timeout:g} s")
        _yield()
        if waited > eager:
            _rest(ready, waited)


def _rest(ready: Ready, waited: float) -> None:
    """One pause, longer the longer the wait has been, after as much polling: without polls nothing moves."""
    if state.lent:
        time.sleep(min(waited / 8, NAP))
        return
    pause = min(waited / 100, 1e-3 if state.crowded else 0.2e-3)
    end = now() + pause
    while now() < end:
        if ready():
            return
    time.sleep(pause)
