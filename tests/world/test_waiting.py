"""The kernel sleeps until somebody says something; a signal wakes it too."""

from __future__ import annotations

import os
import signal
import threading

from nbpar.exchange import Interrupts
from nbpar.ranks.channel import Hub


def test_an_interrupt_ends_the_waiting() -> None:
    hub = Hub()
    try:
        with Interrupts(hub.nudge) as interrupts:
            timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
            timer.start()
            while not interrupts.count:
                assert list(hub.receive(200.0)) == []
            timer.join()
    finally:
        hub.close()
