"""Everything public says what it is: what `nbpar` names, and the members of what that returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import nbpar
from nbpar import errors
from nbpar.plan.plan import Plan, make
from nbpar.ranks.world import World
from nbpar.record import Last

CLASSES = (World, Last, Plan, nbpar.RankValues, nbpar.RankRef, errors.RankDied, errors.CellError, errors.PeerFailed)


def public() -> Iterator[tuple[str, Any]]:
    """(name, what it is) of everything that a person may use."""
    for name in nbpar.__all__:
        yield f"nbpar.{name}", getattr(nbpar, name)
    yield "nbpar.plan()", make
    for name, one in vars(errors).items():
        if inspect.isclass(one) and issubclass(one, errors.NbparError):
            yield f"nbpar.errors.{name}", one
    for kind in CLASSES:
        for name, member in vars(kind).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property | cached_property)):
                yield f"{kind.__name__}.{name}", member


def test_everything_public_says_what_it_is() -> None:
    found = dict(public())
    assert {"nbpar.split", "World.run", "Last.figures", "Plan.memory", "RankValues.cat", "nbpar.errors.RankDied"} <= found.keys()
    assert [name for name, what in found.items() if not (what.__doc__ or "").strip()] == []
