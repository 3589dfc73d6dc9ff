"""Snapshots of models that stay on the ranks: checkpoints in a folder of this host, which outlive the ranks."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbpar.ranks.channel import Message
from nbpar.values.refs import RankRef

PREFIX = os.path.join(tempfile.gettempdir(), "nbpar-snapshots-")


class Snapshots:
    """The newest one is kept, until the notebook's kernel ends: while the next one is written there are two.

    folder: made when it is needed, by the ranks if they are on this host.
    awaited: facts of the one that the next ranks are to begin with, or None.
    saved: names of what the running cell's last one holds, if there is one.
    """

    def __init__(self) -> None:
        self.folder = f"{PREFIX}{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
        self.awaited: Mapping[str, Any] | None = None
        self.saved: frozenset[str] = frozenset()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        forget_the_dead()

    def write(self, part: Message) -> Message:
        """A rank's message without the files that it has sent from another host; these are in the folder then."""
        names = part.header.get("files", ())
        values = len(part.frames) - len(names)
        for name, content in zip(names, part.frames[values:], strict=True):
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            path = Path(part.header["place"], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return replace(part, frames=part.frames[:values])

    def take(self, facts: Mapping[str, Any], namespace: Mapping[str, Any]) -> None:
        """The ranks have written one. facts: place, its folder; names, of what is in it; step; mode: that can have it."""
        from nbpar.checkpoint import describe

        describe(facts["place"], facts["names"], facts["mode"])
        for other in os.listdir(self.folder):
            if other != os.path.basename(facts["place"]):
                shutil.rmtree(os.path.join(self.folder, other), ignore_errors=True)
        self.saved = frozenset(facts["names"])
        self.name(facts, namespace)

    @staticmethod
    def name(facts: Mapping[str, Any], namespace: Mapping[str, Any]) -> None:
        """The notebook's stand-ins say where their values can be read."""
        for name in facts["names"]:
            if isinstance(ref := namespace.get(name), RankRef):
                ref.saved = facts["place"]


def forget_the_dead() -> None:
    """Removes what kernels of this host left that were killed."""
    import psutil

    for folder in glob.glob(f"{PREFIX}{os.uname().nodename}-*"):
        pid = folder.split("-")[-2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
