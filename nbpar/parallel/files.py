"""Files in a lockstep cell: rank 0 writes them; what the other ranks write goes to a private place that vanishes.

Every rank runs the same program, so each file would be written N times at once. A rank other than 0 gets a file of its own in a
private folder instead, and finds it there when it reads the file again in the same cell. Nobody waits for anybody, so a program
that writes under `if nbpar.rank() == 0:` does not hang. As ranks are not at the same line at the same time, rank 0 notes in a
folder that all ranks of its host see what was there before it changed something, and the others read that.

Covered: `open`, `io.open`, `pathlib`, `os.mkdir`, `makedirs`, `remove`, `rename`, `replace`, `stat` and what is built on them
(numpy, PIL, matplotlib, pandas, pickle, shutil), and `torch.save` and `torch.load`. Not covered: libraries that open files in C
(HDF5, SQLite) and listings of folders; do that under `if nbpar.rank() == 0:`.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nbpar.comm.state import state
from nbpar.parallel.patch import patched
from nbpar.ranks.snapshots import PREFIX

ELSEWHERE = ("/dev/", "/proc/", "/sys/")
WRITING = frozenset("wax+")
LARGEST_IMAGE = 16 << 20  # bytes: what was in a larger file before it is overwritten is not kept

Function = Callable[..., Any]
real_stat, real_open, real_replace = os.stat, io.open, os.replace


def exists(path: str) -> bool:
    try:
        real_stat(path)
    except OSError:
        return False
    return True


def missing(path: Any) -> FileNotFoundError:
    return FileNotFoundError(2, "No such file or directory", os.fspath(path))


def already(path: Any) -> FileExistsError:
    return FileExistsError(17, "File exists", os.fspath(path))


class Journal:
    """Rank 0's notes: what was there before the cell changed it. own: places that are not watched."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.own: tuple[str, ...] = (*ELSEWHERE, folder, PREFIX)
        self.noted: set[str] = set()

    def watched(self, path: Any) -> str | None:
        """The absolute path, if it is one that this is about."""
        if not isinstance(path, str | os.PathLike):
            return None
        name = os.path.abspath(os.fspath(path))
        return None if isinstance(name, bytes) or name.startswith(self.own) else name

    def entry(self, name: str, kind: str) -> str:
        return os.path.join(self.folder, hashlib.sha1(name.encode("utf-8", "surrogateescape")).hexdigest() + kind)

    def note(self, name: str, append: bool = False) -> None:
        """On rank 0, before it changes `name` for the first time."""
        if name in self.noted:
            return
        self.noted.add(name)
        if not exists(name):
            self.put(self.entry(name, ".absent"), "")
        elif os.path.isfile(name):
            size = real_stat(name).st_size
            if append:
                self.put(self.entry(name, ".size"), str(size))
            elif size <= LARGEST_IMAGE:
                shutil.copyfile(name, self.entry(name, ".part"))
                real_replace(self.entry(name, ".part"), self.entry(name, ".image"))

    def put(self, entry: str, text: str) -> None:
        with real_open(entry + ".part", "w") as file:
            file.write(text)
        real_replace(entry + ".part", entry)

    def before(self, name: str) -> str | None:
        """Where to read what `name` held before the cell changed it; None if it was not there."""
        if exists(self.entry(name, ".absent")):
            return None
        image = self.entry(name, ".image")
        return image if exists(image) else name

    def size(self, name: str) -> int | None:
        """How long a file was before the cell appended to it."""
        try:
            with real_open(self.entry(name, ".size")) as file:
                return int(file.read())
        except OSError:
            return None


class Overlay:
    """What a rank other than 0 has written, made and removed: its own view of the file system."""

    def __init__(self, folder: str, journal: Journal) -> None:
        self.folder, self.journal = folder, journal
        journal.own += (folder,)
        self.written: dict[str, str] = {}  # path: private path
        self.folders: set[str] = set()
        self.removed: set[str] = set()

    def where(self, name: str) -> str | None:
        """Where this rank finds a file or folder; None if for this rank it is not there."""
        if name in self.written:
            return self.written[name]
        if name in self.folders:
            return self.folder
        if name in self.removed or any(name.startswith(gone + os.sep) for gone in self.removed):
            return None
        place = self.journal.before(name)
        return place if place is not None and exists(place) else None

    def private(self, name: str, start_from: bool) -> str:
        """A private file. start_from: with what the file holds now."""
        if name not in self.written:
            target = os.path.join(self.folder, f"{len(os.listdir(self.folder))}-{os.path.basename(name)}")
            source = self.where(name) if start_from else None
            if source is not None:
                shutil.copyfile(source, target)
                if self.journal.before(name) not in (source, None):  # rank 0 has begun meanwhile
                    shutil.copyfile(self.journal.before(name) or source, target)
                size = self.journal.size(name)
                if size is not None:
                    os.truncate(target, size)
            self.written[name] = target
        self.removed.discard(name)
        return self.written[name]

    def forget(self, name: str) -> None:
        self.written.pop(name, None)
        self.folders.discard(name)
        self.removed.add(name)

    # What replaces the functions. Each gets the original and the arguments of a call.

    def open(self, original: Function, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        name = self.journal.watched(file)
        if name is None:
            return original(file, mode, *args, **kwargs)
        place = self.where(name)
        if not WRITING & set(mode):
            if place is None and (name in self.removed or exists(name)):
                raise missing(file)
            return original(file if place in (None, name) else place, mode, *args, **kwargs)
        if "x" in mode and place is not None:
            raise already(file)
        if ("r" in mode and place is None) or self.where(os.path.dirname(name)) is None:
            raise missing(file)
        return original(self.private(name, "r" in mode or "a" in mode), mode, *args, **kwargs)

    def save(self, original: Function, obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        name = self.journal.watched(f)
        return original(obj, f if name is None else self.private(name, False), *args, **kwargs)

    def load(self, original: Function, f: Any, *args: Any, **kwargs: Any) -> Any:
        name = self.journal.watched(f)
        return original(f if name is None else self.where(name) or f, *args, **kwargs)

    def stat(self, original: Function, path: Any, *args: Any, **kwargs: Any) -> Any:
        name = None if kwargs.get("dir_fd") is not None else self.journal.watched(path)
        if name is None:
            return original(path, *args, **kwargs)
        place = self.where(name)
        if place is None:
            raise missing(path)
        return original(path if place == name else place, *args, **kwargs)

    def mkdir(self, original: Function, path: Any, *args: Any, **kwargs: Any) -> None:
        name = self.journal.watched(path)
        if name is None:
            original(path, *args, **kwargs)
        elif sys._getframe(2).f_globals.get("__name__") == "tempfile":  # a name that no other process has
            self.journal.own += (name,)
            original(path, *args, **kwargs)
        elif self.where(name) is not None:
            raise already(path)
        elif self.where(os.path.dirname(name)) is None:
            raise missing(path)
        else:
            self.folders.add(name)
            self.removed.discard(name)

    def remove(self, original: Function, path: Any, *args: Any, **kwargs: Any) -> None:
        name = None if kwargs.get("dir_fd") is not None else self.journal.watched(path)
        if name is None:
            return original(path, *args, **kwargs)
        if self.where(name) is None:
            raise missing(path)
        self.forget(name)

    def rmtree(self, original: Function, path: Any, *args: Any, **kwargs: Any) -> None:
        name = self.journal.watched(path)
        if name is None:
            return original(path, *args, **kwargs)
        for known in [known for known in (*self.written, *self.folders) if known.startswith(name + os.sep)]:
            self.forget(known)
        self.forget(name)

    def rename(self, original: Function, src: Any, dst: Any, *args: Any, **kwargs: Any) -> None:
        old, new = self.journal.watched(src), self.journal.watched(dst)
        if old is None or new is None:
            return original(src, dst, *args, **kwargs)
        if self.where(old) is None:
            raise missing(src)
        private = self.private(old, True)
        self.forget(old)
        self.written[new] = private
        self.removed.discard(new)

    def changes(self) -> list[tuple[Any, str, Function]]:
        import torch

        return [
            (builtins, "open", self.open), (io, "open", self.open), (torch, "save", self.save), (torch, "load", self.load),
            (os, "stat", self.stat), (os, "mkdir", self.mkdir), (os, "remove", self.remove), (os, "unlink", self.remove),
            (os, "rmdir", self.remove), (os, "rename", self.rename), (os, "replace", self.rename), (shutil, "rmtree", self.rmtree),
        ]  # fmt: skip


def noting(journal: Journal) -> list[tuple[Any, str, Function]]:
    """On rank 0, everything is done as it is, after a note."""
    import torch

    def open(original: Function, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        name = journal.watched(file) if WRITING & set(mode) else None
        if name is not None:
            journal.note(name, append="a" in mode)
        return original(file, mode, *args, **kwargs)

    def save(original: Function, obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        name = journal.watched(f)
        if name is not None:
            journal.note(name)
        return original(obj, f, *args, **kwargs)

    def paths(original: Function, *args: Any, **kwargs: Any) -> Any:
        for path in args[:2] if kwargs.get("dir_fd") is None else ():
            name = journal.watched(path)
            if name is not None:
                journal.note(name)
        return original(*args, **kwargs)

    changed = [(os, name, paths) for name in ("mkdir", "remove", "unlink", "rmdir", "rename", "replace")]
    return [(builtins, "open", open), (io, "open", open), (torch, "save", save), *changed]


def bind(function: Function) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        return call

    return make


_notes: list[tempfile.TemporaryDirectory[str]] = []  # on rank 0: of this cell, and of the last one


def new_notes() -> str:
    """A folder for rank 0's notes. A lagging rank may read it when rank 0's cell is over: it lasts until the next begins."""
    _notes.append(tempfile.TemporaryDirectory(prefix="nbpar-notes-", dir=state.folder or None))
    return _notes[-1].name


@contextmanager
def written_once(rank: int, notes: str) -> Iterator[None]:
    """While it lasts, only rank 0's files are real. notes: rank 0's new folder. No rank is in an earlier cell any more."""
    for old in _notes[:-1]:
        old.cleanup()
    del _notes[:-1]
    journal = Journal(notes)
    with tempfile.TemporaryDirectory(prefix="nbpar-") as folder, ExitStack() as stack:
        for owner, name, function in noting(journal) if rank == 0 else Overlay(folder, journal).changes():
            stack.enter_context(patched(owner, name, bind(function)))
        yield
