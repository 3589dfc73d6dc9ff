"""Ranks: launch, talk to, interrupt, stop. `current()` is the one World of this process."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbpar.ranks.world import Settings, World

__all__ = ["current", "ensure", "stop"]

_world: World | None = None


def current() -> World | None:
    """The running World of this notebook, or None."""
    return _world if _world is not None and _world.running else None


def ensure(namespace: dict[str, Any], settings: Settings | None = None) -> World:
    """The running World; a new one if none runs, or if it is not as `settings` ask."""
    global _world
    from nbpar.ranks.world import Settings, World

    if _world is not None and (settings is None or settings == _world.settings):
        return _world.start()
    if _world is None:
        atexit.register(stop)
    stop()
    _world = World(settings or Settings(), namespace)
    return _world.start()


def stop() -> None:
    """Ends the ranks of this notebook, if there are any."""
    if _world is not None:
        _world.stop()
