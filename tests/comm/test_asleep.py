"""A wait that is seen from processor time alone counts from when the call was entered."""

from __future__ import annotations

import threading
import time

import pytest

from nbpar.comm import asleep
from nbpar.comm.state import state


def test_what_slept_elsewhere_before_has_not_waited_there(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [""]
    monkeypatch.setattr(state, "sockets", {(0, 0)})
    monkeypatch.setattr(asleep, "place", lambda frame: (at[0], 7))
    found, times = [], []

    def look() -> None:
        watcher = asleep.Asleep()
        for at[0] in ("", "", "backward", "backward"):
            times.append(time.monotonic())
            found.append(watcher.look())
            time.sleep(0.2)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()  # the main thread, which is looked at, waits meanwhile
    *before, entered, later = found
    assert before == [None, None] and entered is not None and later is not None
    assert entered.seconds < times[2] - (times[0] + times[1]) / 2 and entered.seconds < later.seconds
    assert str(later).startswith("waits in backward, line 7")
