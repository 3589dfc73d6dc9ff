"""The machines that ranks run on: which, how many ranks on each, and by which address they reach the kernel."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from nbpar.errors import LaunchError, OptionError


@dataclass(frozen=True)
class Host:
    """slots: how many ranks it takes."""

    name: str
    slots: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def read(text: str) -> tuple[Host, ...]:
    """'a:4,b:4'; 'a' is 'a:1'. Raises ValueError."""
    found = []
    for part in text.split(","):
        name, colon, slots = part.strip().partition(":")
        if not name or name.startswith("-") or not (slots.isdigit() and int(slots) if colon else True):
            raise ValueError(f"{part!r} is not HOST:RANKS")
        found.append(Host(name, int(slots) if colon else 1))
    if len({host.name for host in found}) < len(found):
        raise ValueError("a host is named twice")
    return tuple(found)


def of_slurm() -> tuple[str, ...]:
    """The hosts of this Slurm allocation; empty if the kernel's own is the only one. Raises LaunchError."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        return ()
    if "[" in nodes:
        try:
            command = ["scontrol", "show", "hostnames", nodes]
            nodes = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.replace("\n", ",")
        except (OSError, subprocess.SubprocessError) as error:
            raise LaunchError(f"SLURM_JOB_NODELIST={nodes}, and `{' '.join(command)}` does not say what that is: {error}") from None
    names = tuple(name for name in nodes.split(",") if name)
    here = os.uname().nodename.partition(".")[0]
    return () if [name.partition(".")[0] for name in names] == [here] else names


def slurm_size() -> int | None:
    """Ranks that this Slurm allocation is for, or None."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    return int(tasks) if tasks.isdigit() and "SLURM_JOB_ID" in os.environ else None


def own_address(names: Sequence[str]) -> str:
    """The address of this machine that these hosts reach it by.

    Raises LaunchError if there is no way to one of them, OptionError if they would use different addresses.
    """
    routes = {name: route(name) for name in names}
    outward = {name: address for name, address in routes.items() if not ipaddress.ip_address(address).is_loopback}
    addresses = set((outward or routes).values())
    if len(addresses) > 1:
        ways = ", ".join(f"{name} by {address}" for name, address in outward.items())
        raise OptionError(f"The hosts reach this machine in different ways ({ways}). Say which: `--interface ADDRESS`.")
    return addresses.pop()


def route(name: str) -> str:
    """The address that this machine would send from to reach that host. Nothing is sent. Raises LaunchError if there is no way."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(name, 9, socket.AF_INET, socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise LaunchError(f"The host {name} cannot be reached from {os.uname().nodename}: {error.strerror or error}.") from None
