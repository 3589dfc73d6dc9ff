"""Ranks: launch, talk to, interrupt, stop. `current()` is the one World of this process."""

from __future__ import annotations

import atexit
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbpar.ranks.world import Settings, World

__all__ = ["begin", "current", "ensure", "stop"]

_world: World | None = None
_beginning: Future[World] | None = None  # the start of _world, as long as nobody has asked how it went


def begin(world: World) -> None:
    """Starts the notebook's World while the kernel goes on. Whoever asks for it waits; `ensure` raises what went wrong."""
    global _world, _beginning
    _world = world
    atexit.register(stop)
    starter = ThreadPoolExecutor(1, "nbpar-start")
    _beginning = starter.submit(world.start)
    starter.shutdown(wait=False)


def current() -> World | None:
    """The running World of this notebook, or None."""
    if _beginning is not None:
        wait([_beginning])
    return _world if _world is not None and _world.running else None


def ensure(namespace: dict[str, Any], settings: Settings | None = None) -> World:
    """The running World; a new one if none runs, or if it is not as `settings` ask.

    Raises OptionError for settings that no world can have, and then ends none; LaunchError."""
    global _world
    from nbpar.ranks.world import Settings, World

    begun = _begun()
    if _world is not None and (settings is None or settings == _world.settings):
        if begun is not None:
            begun.result()
        return _world.start()
    world = World(settings or Settings(), namespace)
    if _world is None:
        atexit.register(stop)
    else:
        world.snapshots = _world.snapshots
    stop()
    _world = world
    return _world.start()


def stop() -> None:
    """Ends the ranks of this notebook, if there are any."""
    _begun()
    if _world is not None:
        _world.stop()


def _begun() -> Future[World] | None:
    """What came of `begin`, once."""
    global _beginning
    if _beginning is not None:
        wait([_beginning])
    begun, _beginning = _beginning, None
    return begun
