"""What a rank is asked to do and what it answers: plain data, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbpar.ranks.postmortem import PostMortem
from nbpar.ranks.pulse import Pulse
from nbpar.ranks.surroundings import Changes


@dataclass(frozen=True)
class Task:
    """One cell for a rank. Values come in the message's frames, the first `shared` of them the same for all ranks.

    relayed: sizes in bytes of the shared frames, if only the first of `ranks` has them and the others get them over MPI.
    """

    number: int  # counts the cells of this world
    code: str
    mode: str
    options: Mapping[str, Any]
    lockstep: bool
    count: int  # the notebook's In[count]
    shared: int
    relayed: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    states: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # the kernel's random states
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the notebook's, as values.settings captures them
    sources: Mapping[str, tuple[int, str]] = field(default_factory=dict, repr=False)  # earlier cells, for tracebacks
    changes: Changes | None = field(default=None, repr=False)  # around the ranks
    out: frozenset[str] | None = None
    keep: frozenset[str] = frozenset()
    check: int = 0  # optimiser steps after which the cell is compared with one process; 0: not at all
    snapshots: str = ""  # the folder of the kernel's host for models that stay on the ranks
    watched: bool = True  # whether anybody looks at the cell while it runs, or at its timeline


@dataclass(frozen=True)
class Failure:
    """How a cell ended in an exception on one rank."""

    kind: str  # the exception's qualified type name
    text: str
    traceback: list[str] = field(repr=False)  # as IPython prints it
    line: int | None  # of the cell
    exception: bytes | None = field(default=None, repr=False)  # pickled, if it can be
    wait: str = ""  # where it waited ("in all_reduce #17 of 3×3, line 6"), if it may only tell that another rank failed
    postmortem: PostMortem | None = field(default=None, repr=False)  # for `%debug`

    @property
    def identity(self) -> tuple[str, str, int | None]:
        """Equal for failures that are the same thing on several ranks."""
        return self.kind, self.text, self.line

    @property
    def interrupted(self) -> bool:
        return self.kind == "KeyboardInterrupt"

    @property
    def follows(self) -> bool:
        """Whether it only tells that another rank failed."""
        return self.kind == "nbpar.errors.PeerFailed"

    @property
    def mismatch(self) -> bool:
        """Whether ranks in lockstep parted ways."""
        return self.kind == "nbpar.errors.CollectiveMismatch"


@dataclass(frozen=True)
class Reply:
    """A rank's answer when its cell has ended. The values it changed come in the message's frames."""

    seconds: float  # in the cell
    produced: int  # output so far, in the outlet's units: the kernel waits until it has seen it
    failure: Failure | None = None
    result: dict[str, Any] | None = field(default=None, repr=False)  # how the last expression's value looks on the rank
    lines: list[str] = field(default_factory=list)  # what the mode has to say
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    traffic: Any = field(default=None, repr=False)  # comm.trace's columns
    phases: Any = field(default=None, repr=False)  # ranks.phases' columns, if the cell was watched
    pulse: Pulse | None = None  # the last one
    states: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # that the cell has changed
