"""What changes around the ranks while they run: the environment, and modules that a person edits.

Objects of modules travel by their names: a rank that had imported a module before it was edited would run its old code. So what
the notebook has read anew, the ranks read anew too.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from IPython.core.getipython import get_ipython

INSTALLED = tuple({os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib")})
AUTORELOAD = "IPython.extensions.autoreload"


@dataclass(frozen=True)
class Changes:
    """Since the cell before. environ: by variable, None where it is gone; modules: that were reloaded, in order of import.

    in_place: whether the notebook brought the objects that it had of these modules up to date, as `%autoreload` does.
    """

    environ: Mapping[str, str | None]
    modules: tuple[str, ...] = ()
    in_place: bool = False

    def apply(self) -> None:
        """On a rank. Raises what the modules' code raises."""
        for name, value in self.environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        importlib.invalidate_caches()
        again = importlib.import_module(AUTORELOAD).superreload if self.in_place else importlib.reload
        for name in self.modules:
            if name in sys.modules:
                again(sys.modules[name])


class Surroundings:
    """In the kernel: what has changed since the ranks were started, or `take` was last called."""

    def __init__(self) -> None:
        self._environ = dict(os.environ)
        self._loaded = 0  # modules
        self._specs: dict[str, Any] = {}  # of the person's modules: every import makes a new one
        self._times: dict[str, float] = {}  # of their files, when `%autoreload` last looked: it may leave the spec
        self._reloaded()

    def take(self) -> Changes | None:
        """None if nothing has changed, as is usual."""
        environ, modules = self._changed_variables(), self._reloaded()
        return Changes(environ, modules, AUTORELOAD in sys.modules) if environ or modules else None

    def _changed_variables(self) -> dict[str, str | None]:
        before, self._environ = self._environ, dict(os.environ)
        if before == self._environ:
            return {}
        return {name: self._environ.get(name) for name, _ in before.items() ^ self._environ.items()}

    def _reloaded(self) -> tuple[str, ...]:
        if len(sys.modules) != self._loaded:
            self._loaded = len(sys.modules)
            for name in list(sys.modules):
                if is_persons(name):
                    self._specs.setdefault(name, spec_of(name))
        now = {name: spec_of(name) for name in self._specs if name in sys.modules}
        times = autoreload_times(now)
        found = {name for name, spec in now.items() if spec is not self._specs[name]}
        found |= {name for name, time in times.items() if self._times.get(name, time) != time}
        self._specs.update(now)
        self._times.update(times)
        return tuple(name for name in now if name in found)


def is_persons(name: str) -> bool:
    """Whether a module is likely to be edited: it was not installed."""
    origin = getattr(spec_of(name), "origin", None) or ""
    return origin.endswith(".py") and not origin.startswith(INSTALLED) and name.partition(".")[0] != "nbpar"


def autoreload_times(names: Iterable[str]) -> dict[str, float]:
    """When the files of modules were last changed, as far as `%autoreload` has seen it."""
    shell = get_ipython() if AUTORELOAD in sys.modules else None
    magics = shell and shell.magics_manager.registry.get("AutoreloadMagics")
    seen = magics._reloader.modules_mtimes if magics else {}
    return {name: seen[name] for name in names if name in seen}


def spec_of(name: str) -> Any:
    return getattr(sys.modules.get(name), "__spec__", None)
