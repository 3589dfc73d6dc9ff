"""Which ways a call takes, by what it asks and is told: see `verdicts`."""

from __future__ import annotations


class Answers:
    """Of one run of a call. given: what is to be answered, or expected. found: so far."""

    def __init__(self, given: tuple[bool, ...] = ()) -> None:
        self.given = given
        self.found: tuple[bool, ...] = ()

    @property
    def strayed(self) -> bool:
        """Whether something was answered that was not expected."""
        return self.found != self.given[: len(self.found)]

    def next(self, own: bool) -> bool:
        """As given; what this run itself says where nothing is."""
        at = len(self.found)
        self.found += (self.given[at] if at < len(self.given) else own,)
        return self.found[-1]

    def known(self) -> bool | None:
        """As given; None if nothing is."""
        at = len(self.found)
        return self.next(self.given[at]) if at < len(self.given) else None

    def expected(self, own: bool) -> bool:
        """Whether what this run says is what was given."""
        self.found += (own,)
        return not self.strayed
