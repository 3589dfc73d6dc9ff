"""Everything that nbpar raises.

    NbparError
    ├── OptionError             a magic's option or mode is wrong; shown as one line, no traceback
    ├── WorldError              the set of ranks
    │   ├── LaunchError         no launcher, no MPI, or the ranks did not come up
    │   └── RankDied            a rank's process ended while it was needed
    ├── CellError               the cell failed on some ranks
    │   └── CollectiveMismatch  ranks wait in collectives that do not match
    ├── PeerFailed              raised in a rank that waits for one that failed
    ├── CannotTravel            a value that stays where it is
    └── Unsupported             a mode cannot do this without risking a wrong number

A cell that raises alike on all ranks raises that very exception in the notebook, not a CellError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NbparError(Exception):
    """Base of every error that nbpar raises itself."""


class Told(NbparError):
    """An error whose text says all: notebooks show it without a traceback through nbpar's own code."""

    def _render_traceback_(self) -> list[str]:
        return f"{type(self).__name__}: {self}".splitlines()


class OptionError(Told):
    """A wrong option, mode or name on a magic's line."""


class WorldError(Told):
    """The ranks could not be started, reached or kept."""


class LaunchError(WorldError):
    """No world came up. The text lists what was tried and what to install.

    early: whether a rank or the launcher ended by itself before all ranks were ready.
    """

    def __init__(self, text: str, *, early: bool = False) -> None:
        super().__init__(text)
        self.early = early


class RankDied(WorldError):
    """A rank's process ended while it was needed.

    rank: which one; host: where; reason: the signal or exit code, in words.
    """

    def __init__(self, text: str, *, rank: int, host: str, reason: str) -> None:
        super().__init__(text)
        self.rank, self.host, self.reason = rank, host, reason


class CellError(Told):
    """A cell failed on some ranks and not, or not alike, on others.

    failures: the ranks' tracebacks, as IPython prints them, by rank.
    """

    def __init__(self, text: str, failures: dict[int, list[str]] | None = None) -> None:
        super().__init__(text)
        self.failures = failures or {}


class CollectiveMismatch(CellError):
    """Ranks wait for each other in collectives that do not match."""


class PeerFailed(Told):
    """Raised where a rank waits, because the one that it waits for has failed or was interrupted.

    reason: what happened there. wait: where this rank was ("in all_reduce #17 of 3×3, line 6"), empty if it was in no call.
    """

    def __init__(self, reason: str, wait: str = "") -> None:
        super().__init__(reason, wait)
        self.reason, self.wait = reason, wait

    def __str__(self) -> str:
        return f"{self.reason}; this rank was waiting {self.wait}" if self.wait else self.reason


class CannotTravel(NbparError):
    """A value that cannot be taken from one process to another."""


class Unsupported(NbparError):
    """The mode cannot run this line without risking a wrong number."""


def suggest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'model'?" for a misspelling of a known word, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
