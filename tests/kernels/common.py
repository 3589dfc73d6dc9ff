"""What the tests of kernels share."""

from __future__ import annotations

import time
from pathlib import Path

from tests.notebook import Notebook


def interrupted(notebook: Notebook, mark: Path, *, magic: str = "%%parallel") -> str:
    """The error of a cell that is interrupted once it runs. mark: a file by which the cell says that it does."""
    mark.unlink(missing_ok=True)
    sleeping = notebook.send(f"{magic}\nimport time\nopen({str(mark)!r}, 'a').close()\ntime.sleep(60)")
    end = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < end, "the cell does not begin"
        time.sleep(0.05)
    notebook.interrupt()
    return notebook.collect(sleeping, 20).error
