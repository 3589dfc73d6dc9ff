"""The World of a kernel that a launcher started together with its ranks."""

from __future__ import annotations

import atexit
import os
import subprocess
import time
from dataclasses import replace
from typing import Any

from nbpar.errors import LaunchError, OptionError, RankDied
from nbpar.kernel.meeting import Meeting
from nbpar.ranks import hosts
from nbpar.ranks.channel import Hub, Message
from nbpar.ranks.guard import OUTLIVE
from nbpar.ranks.launch import Launcher
from nbpar.ranks.world import ONE_HOST, SETTLE, Settings, World

LAUNCHER = Launcher("mpiexec or srun", "unknown", "it started this kernel and its ranks")
ENDING = 4 * SETTLE  # seconds for all ranks to end that were killed


class Job:
    """In the launcher's place, which lives as long as the kernel does: what ends is the ranks, by their guards' word."""

    returncode = 0

    def __init__(self, hub: Hub, size: int) -> None:
        self._hub, self.left = hub, set(range(size))

    def poll(self) -> int | None:
        return None if self.left else 0

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.left:
            if (rest := end - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired("ranks", timeout)
            self.left.difference_update(message.rank for message in self._hub.receive(rest) if message.kind == "exit")
        return 0


class LaunchedWorld(World):
    """Ranks that came with the kernel. They can end before it, but not come again."""

    def __init__(self, settings: Settings, namespace: dict[str, Any], meeting: Meeting, many_hosts: bool) -> None:
        super().__init__(settings, namespace)
        self._meeting, self._many_hosts = meeting, many_hosts
        self._job: Job | None = None
        self._line: Hub | None = None  # to the guards: they end when it does
        atexit.register(self._hang_up)

    @property
    def again(self) -> str:
        """What to do instead of starting these ranks again."""
        return (
            "These ranks came with the kernel from its launcher, which cannot start them a second time: save what you need and "
            f"restart the kernel, or type `%parallel start -n {self.size}` for ranks that a launcher found on this host starts."
        )

    def start(self) -> World:
        if self.running:
            return self
        if self._line is not None:
            raise LaunchError(f"No ranks run. {self.again}")
        try:
            self._start(LAUNCHER)
        finally:
            self._meeting.close()
        return self

    def restart(self) -> World:
        raise LaunchError(f"Nothing was restarted. {self.again}")

    def resized(self, size: int) -> Settings:
        raise OptionError(
            f"-n {size}: this kernel's launcher started {self.size} ranks. Leave -n out, or use some of them: `--on 0-{size - 1}`."
            if size < self.size
            else f"-n {size}: this kernel's launcher started {self.size} ranks. Install a kernel with more of them."
        )

    def _reach(self, _launcher: Launcher) -> str | None:
        self.spread = self._many_hosts
        names = hosts.of_slurm() or (os.uname().nodename,)
        return self.settings.interface or (hosts.own_address(names) if self.spread else None)

    def _launch(self, _launcher: Launcher, own: dict[str, str]) -> Any:
        assert self._hub
        self._line, self._job = self._hub, Job(self._hub, self.size)
        transport = {} if self.spread else {name: os.environ.get(name, value) for name, value in ONE_HOST.items()}
        self._meeting.open({**transport, **own, OUTLIVE: "1"})
        return self._job

    def _fell(self, first: Message | None) -> RankDied:
        if first is not None and self._job:
            self._job.left.discard(first.rank)
        return super()._fell(first)

    def _tear_down(self) -> None:
        """Ends the ranks. The guards and the line to them stay, and with them the kernel."""
        if self._job is not None and self._hub is not None:
            for rank in self._job.left:
                self._hub.send("guard", rank, Message("kill", {"signal": 9}))
            try:
                self._job.wait(ENDING)
            except subprocess.TimeoutExpired:
                pass
        self._launcher = self._job = self._hub = None
        self.settings = replace(self.settings, mpiexec=LAUNCHER.path)  # `%parallel start -n N` asks for other ranks now
        super()._tear_down()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
