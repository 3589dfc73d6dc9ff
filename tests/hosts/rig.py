"""Hosts made of namespaces: each has a network address, a name, a clock and a /dev/shm of its own, on one wire.

    switch    a bridge
    k         where the notebook's kernel runs
    a, b, …   where ranks run

A namespace lives as long as a process in it, here a `sleep` that ends with the process that made it: nothing is left behind,
however a test ends. The tree of processes and the files are shared, as on a cluster the home folder is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

NETWORK = "10.213.7"
KERNEL = "k"
SSH = """#!/bin/sh
# Stands in for ssh: enters the host, with none of the caller's environment.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec nsenter -t $(cat %s/$host) -n -m -u -T env -i HOME="$HOME" PATH=/usr/bin:/bin sh -c "$*"
"""


class Hosts:
    """Use as a context manager. names: of the hosts beside the kernel's. ssh: a launcher for `mpiexec -launcher-exec`."""

    def __init__(self, names: Sequence[str] = ("a", "b")) -> None:
        self.names = [KERNEL, *names]
        self.pids: dict[str, int] = {}
        self._makers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Hosts:
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        table = "".join(f"{self.address(name)} {name}\n" for name in self.names)
        (self.folder / "table").write_text(f"127.0.0.1 localhost\n{table}")
        self.pids["switch"] = self._live("switch")
        self.on("switch", "ip link add name bridge type bridge && ip link set bridge up")
        for name in self.names:
            pid = self.pids[name] = self._live(name)
            (self.folder / name).write_text(str(pid))
            self.on(
                "switch",
                f"ip link add name to-{name} type veth peer name eth0 netns {pid} && ip link set to-{name} master bridge up",
            )
            self.on(name, f"ip addr add {self.address(name)}/24 dev eth0 && ip link set eth0 up && ip link set lo up")
            self.on(name, f"mount -t tmpfs -o size=64m shm /dev/shm && mount --bind {self.folder}/table /etc/hosts")
        self.ssh = self.folder / "ssh"
        self.ssh.write_text(SSH % self.folder)
        self.ssh.chmod(0o755)

    def _live(self, name: str) -> int:
        """The process id of what keeps a new host there."""
        code = f"hostname {name} && echo $$ && exec sleep infinity"
        spaces = ["--net", "--mount", "--uts", "--time", "--monotonic", str(1000 * len(self.pids)), "--kill-child"]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "sh", "-c", code]
        maker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._makers.append(maker)
        assert maker.stdout and maker.stderr
        pid = maker.stdout.readline()
        if not pid:
            raise OSError(f"no namespace: {maker.stderr.read().strip()}")
        return int(pid)

    def __exit__(self, *_: object) -> None:
        """Ends what runs on the hosts too."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for maker in self._makers:
            maker.kill()
            maker.wait()
        shutil.rmtree(self.folder)

    def address(self, name: str) -> str:
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def enter(self, name: str) -> list[str]:
        """A command line's beginning that runs the rest of it on a host."""
        return ["nsenter", "-t", str(self.pids[name]), "-n", "-m", "-u", "-T", "env", "-C", os.getcwd()]

    def on(self, name: str, script: str) -> str:
        """What a script prints on a host. Raises OSError with its error."""
        ran = subprocess.run([*self.enter(name), "sh", "-c", script], capture_output=True, text=True, check=False, timeout=20)
        if ran.returncode:
            raise OSError(f"{script}: {ran.stderr.strip()}")
        return ran.stdout

    def processes(self, *names: str) -> list[psutil.Process]:
        """Those on some hosts, or on all, that a test started."""
        spaces = {os.readlink(f"/proc/{self.pids[name]}/ns/net") for name in names or self.pids}
        keepers = {*self.pids.values(), *(maker.pid for maker in self._makers)}
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid not in keepers and os.readlink(f"/proc/{process.pid}/ns/net") in spaces:
                    found.append(process)
            except (OSError, psutil.Error):
                pass
        return found

    def cut(self, name: str) -> None:
        """Takes a host off the wire, without a word to anybody."""
        self.on("switch", f"ip link set to-{name} down")

    def mend(self, name: str) -> None:
        self.on("switch", f"ip link set to-{name} up")

    def received(self, name: str) -> int:
        """Bytes that came to a host over the wire so far."""
        return int(json.loads(self.on(name, "ip -s -j link show eth0"))[0]["stats64"]["rx"]["bytes"])
