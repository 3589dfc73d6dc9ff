"""Files in a lockstep cell: rank 0 writes them; what the other ranks write goes to a private place that vanishes.

Every rank runs the same program, so each file would be written N times at once. A rank other than 0 gets a file of its own in a
private folder instead, and finds it there when it reads the file again in the same cell: nobody has to wait for anybody, and a
program that writes on one rank only does not hang. Files that a rank has not written are read where they are.

Covered: `open`, `io.open`, `pathlib`, `os.mkdir`, `makedirs`, `remove`, `rename`, `replace`, `stat` and what is built on them
(numpy, PIL, matplotlib, pandas, pickle, shutil), and `torch.save` and `torch.load`. Not covered: libraries that open files in C
(HDF5, SQLite); call those under `if nbpar.rank() == 0:`.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

ELSEWHERE = ("/dev/", "/proc/", "/sys/")


class Overlay:
    """What a rank has written, removed and made: its own view of the file system."""

    def __init__(self, folder: str) -> None:
        self.folder, self.began = folder, os.stat(folder).st_ctime
        self.written: dict[str, str] = {}  # path: private path
        self.folders: set[str] = set()
        self.removed: set[str] = set()
        self.own: tuple[str, ...] = (*ELSEWHERE, folder)  # where this view is not about

    def ours(self, path: Any) -> str | None:
        """The absolute path, if it is one that this view is about."""
        if not isinstance(path, str | os.PathLike):
            return None
        name = os.path.abspath(os.fspath(path))
        if isinstance(name, bytes) or name.startswith(self.own):
            return None
        return name

    def private(self, path: str, start_from: bool) -> str:
        """A private file for this path. start_from: with what the file holds now."""
        if path not in self.written:
            target = os.path.join(self.folder, f"{len(self.written)}-{os.path.basename(path)}")
            if start_from and path not in self.removed and os.path.isfile(path):
                shutil.copyfile(path, target)
            self.written[path] = target
        self.removed.discard(path)
        return self.written[path]

    def made_by_cell(self, path: str) -> bool:
        """Rank 0 may be ahead and have made this already."""
        try:
            return real_stat(path).st_ctime >= self.began
        except OSError:
            return False


real_stat = os.stat
Function = Callable[..., Any]


def opening(overlay: Overlay) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            path = overlay.ours(file)
            if path is None:
                return original(file, mode, *args, **kwargs)
            if not set(mode) & set("wax+"):
                if path in overlay.removed:
                    raise FileNotFoundError(2, "No such file or directory", os.fspath(file))
                return original(overlay.written.get(path, file), mode, *args, **kwargs)
            if "x" in mode and overlay.made_by_cell(path) and path not in overlay.written:
                mode = mode.replace("x", "w")
            elif "x" in mode and path not in overlay.written and os.path.exists(path):
                raise FileExistsError(17, "File exists", os.fspath(file))
            if "w" in mode or "x" in mode or "a" in mode:
                folder = os.path.dirname(path)
                if not os.path.isdir(folder):
                    raise FileNotFoundError(2, "No such file or directory", os.fspath(file))
            known = path in overlay.written
            private = overlay.private(path, start_from="w" not in mode and "x" not in mode)
            if "r" in mode and not known and not real_exists(private):
                del overlay.written[path]
                raise FileNotFoundError(2, "No such file or directory", os.fspath(file))
            return original(private, mode, *args, **kwargs)

        return open

    return make


def real_exists(path: str) -> bool:
    try:
        real_stat(path)
    except OSError:
        return False
    return True


def saving(overlay: Overlay) -> Callable[[Function], Function]:
    """`torch.save`, which may write from C++."""

    def make(original: Function) -> Function:
        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            path = overlay.ours(f)
            return original(obj, f if path is None else overlay.private(path, False), *args, **kwargs)

        return save

    return make


def loading(overlay: Overlay) -> Callable[[Function], Function]:
    """`torch.load`, which may map the file."""

    def make(original: Function) -> Function:
        def load(f: Any, *args: Any, **kwargs: Any) -> Any:
            path = overlay.ours(f)
            return original(overlay.written.get(path, f) if path else f, *args, **kwargs)

        return load

    return make


def making(overlay: Overlay) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            name = overlay.ours(path)
            if name is None:
                return original(path, *args, **kwargs)
            if sys._getframe(1).f_globals.get("__name__") == "tempfile":  # a name that no other process has
                overlay.own = (*overlay.own, name)
                return original(path, *args, **kwargs)
            if name in overlay.folders or (real_exists(name) and not overlay.made_by_cell(name)):
                raise FileExistsError(17, "File exists", os.fspath(path))
            if not os.path.isdir(os.path.dirname(name)):
                raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
            overlay.folders.add(name)
            overlay.removed.discard(name)

        return mkdir

    return make


def removing(overlay: Overlay) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def remove(path: Any, *args: Any, **kwargs: Any) -> None:
            name = overlay.ours(path)
            if name is None or kwargs.get("dir_fd") is not None:
                return original(path, *args, **kwargs)
            private = overlay.written.pop(name, None)
            if private is not None and real_exists(private):
                original(private)
            overlay.removed.add(name)
            overlay.folders.discard(name)

        return remove

    return make


def removing_tree(overlay: Overlay) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
            name = overlay.ours(path)
            if name is None:
                return original(path, *args, **kwargs)
            for known in [known for known in overlay.written if known.startswith(name + os.sep)]:
                os.remove(known)
            overlay.folders -= {known for known in overlay.folders if known.startswith(name + os.sep)} | {name}
            overlay.removed.add(name)

        return rmtree

    return make


def renaming(overlay: Overlay) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def rename(src: Any, dst: Any, *args: Any, **kwargs: Any) -> None:
            old, new = overlay.ours(src), overlay.ours(dst)
            if old is None or new is None:
                return original(src, dst, *args, **kwargs)
            private = overlay.private(old, True)
            del overlay.written[old]
            if real_exists(private):
                overlay.written[new] = private
            overlay.removed.add(old)
            overlay.removed.discard(new)

        return rename

    return make


def looking(overlay: Overlay) -> Callable[[Function], Function]:
    def make(original: Function) -> Function:
        def stat(path: Any, *args: Any, **kwargs: Any) -> Any:
            name = overlay.ours(path) if not kwargs.get("dir_fd") and (overlay.written or overlay.folders or overlay.removed) else None
            if name is None:
                return original(path, *args, **kwargs)
            if name in overlay.written:
                return original(overlay.written[name], *args, **kwargs)
            if name in overlay.folders:
                return original(overlay.folder)
            if name in overlay.removed:
                raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
            return original(path, *args, **kwargs)

        return stat

    return make


@contextmanager
def written_once(rank: int) -> Iterator[None]:
    """While it lasts, only rank 0's files are real."""
    if rank == 0:
        yield
        return
    import torch

    from nbpar.parallel.patch import patched

    with tempfile.TemporaryDirectory(prefix="nbpar-") as folder, ExitStack() as stack:
        overlay = Overlay(folder)
        changes: list[tuple[Any, str, Callable[[Function], Function]]] = [
            (builtins, "open", opening(overlay)),
            (io, "open", opening(overlay)),
            (os, "mkdir", making(overlay)),
            (os, "remove", removing(overlay)),
            (os, "unlink", removing(overlay)),
            (os, "rmdir", removing(overlay)),
            (shutil, "rmtree", removing_tree(overlay)),
            (os, "rename", renaming(overlay)),
            (os, "replace", renaming(overlay)),
            (os, "stat", looking(overlay)),
            (torch, "save", saving(overlay)),
            (torch, "load", loading(overlay)),
        ]
        for owner, name, make in changes:
            stack.enter_context(patched(owner, name, make))
        yield

