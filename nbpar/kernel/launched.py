"""A kernel under a launcher, for sites where only that may start processes: `mpiexec -n 4 python -m nbpar.kernel -f FILE`.

    launcher
    ├── process 0  starts the kernel, waits for its word, and becomes rank 0's guard and rank
    │   └── kernel
    └── process r  waits for the kernel's word, and becomes rank r's guard and rank

From then on all is as if the kernel had started the ranks, with two differences: a guard outlives its rank, for the launcher
would end the kernel with it; and MPI cannot begin twice in what a launcher started, so the ranks come once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from nbpar.kernel.meeting import Meeting
from nbpar.ranks.prepare import LAUNCHED, hosts_from_launcher, rank_from_launcher, size_from_launcher, without_launcher


def become_rank(arguments: Sequence[str]) -> NoReturn:
    """What each process does that the launcher started. arguments: the kernel's."""
    meeting, kernel = Meeting(connection_file(arguments)), None
    if rank_from_launcher() == 0:
        meeting.close()  # an older kernel's
        kernel = start_kernel(arguments)
    environment = meeting.wait(hope=lambda: kernel is None or kernel.poll() is None)
    if environment is None:
        sys.exit("nbpar: the kernel ended before its ranks began.")
    os.execve(sys.executable, [sys.executable, "-m", "nbpar.ranks.rank"], {**os.environ, **environment})


def start_kernel(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process of its own session: signals for the launcher's processes do not reach it, and the launcher's MPI is not its."""
    environment = without_launcher(os.environ)
    environment[LAUNCHED] = f"{size_from_launcher()} {hosts_from_launcher()}"
    environment["JPY_PARENT_PID"] = str(os.getpid())  # whose end the kernel looks out for
    return subprocess.Popen(
        [sys.executable, "-m", "nbpar.kernel", *arguments], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )


def connection_file(arguments: Sequence[str]) -> str:
    """The value of `-f`."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "-f" and following:
            return following
        if word.startswith(("-f=", "--f=")):
            return word.partition("=")[2]
    sys.exit("nbpar.kernel under a launcher needs `-f CONNECTION_FILE`.")
