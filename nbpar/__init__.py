"""nbpar: run an unchanged PyTorch notebook cell over MPI ranks or GPUs.

    %load_ext nbpar

    %%parallel data -n 4
    ...

Imports nothing heavy: the parts are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbpar import plan
    from nbpar.checkpoint import load, save
    from nbpar.parallel.api import rank, size, split
    from nbpar.ranks.world import World
    from nbpar.record import last
    from nbpar.remote import gather
    from nbpar.values import RankRef, RankValues

__version__ = "0.1.0"
__all__ = ["RankRef", "RankValues", "gather", "last", "load", "plan", "rank", "save", "size", "split", "world"]


def world() -> World | None:
    """The running World of this notebook, or None."""
    from nbpar.ranks import current

    return current()


_completion: Any = None


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext nbpar`"""
    global _completion
    from nbpar.completion import Completion
    from nbpar.magics import ParallelMagics

    shell.register_magics(ParallelMagics)
    _completion = Completion(shell)
    _completion.add()


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext nbpar`: ends the ranks; the magics go."""
    from nbpar.ranks import stop

    stop()
    _completion.remove()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("parallel", None)


_LAZY = {
    "gather": "nbpar.remote",
    "load": "nbpar.checkpoint",
    "save": "nbpar.checkpoint",
    "last": "nbpar.record",
    "rank": "nbpar.parallel.api",
    "size": "nbpar.parallel.api",
    "split": "nbpar.parallel.api",
    "RankRef": "nbpar.values",
    "RankValues": "nbpar.values",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "plan":
        return import_module("nbpar.plan")  # a package that can be called
    if name not in _LAZY:
        raise AttributeError(f"module 'nbpar' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
