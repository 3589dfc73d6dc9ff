"""Stand-ins for values that cannot travel: they say what it is, where it is and why."""

from __future__ import annotations

from typing import Any, NoReturn

from nbpar.errors import CannotTravel
from nbpar.values import kinds


class Absent:
    """A value that is elsewhere. Using it raises CannotTravel; handing it back gives the other side its own object.

    name: the variable that led to it; type: its class, in words; reason: why it stayed; size: bytes of its data, if known;
    mode: that of the cell that left it; saved: where it was last written to.
    """

    __slots__ = ("__weakref__", "_key", "mode", "name", "reason", "saved", "size", "type")
    where = "elsewhere"
    remedy = ""

    def __init__(self, key: str, name: str, type: str, reason: str, *facts: Any) -> None:
        self._key, self.name, self.type, self.reason = key, name, type, reason
        given: list[Any] = [0, "each", ""]
        given[: len(facts)] = facts
        self.size, self.mode, self.saved = given

    def __repr__(self) -> str:
        size = f", {megabytes(self.size)}" if self.size else ""
        return f"<{type(self).__name__} {self.name}: {self.type}{size}, {self.where}. {self.reason} {self.remedy}>".replace(
            " >", ">"
        )

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise CannotTravel(f"{self.name} ({self.type}) is {self.where}: {self.reason} {self.remedy}".rstrip())

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)  # what Python and IPython look for by themselves
        self._refuse()

    __call__ = __getitem__ = __setitem__ = __delitem__ = __len__ = __iter__ = __next__ = __contains__ = _refuse
    __bool__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __float__ = __int__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __matmul__ = __rmatmul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._key, self.name, self.type, self.reason, self.size, self.mode, self.saved)


class RankRef(Absent):
    """In the notebook: a value that stayed on the ranks. A later parallel cell that reads it has the object itself.

    Called, a module or function runs on the ranks; what it gives comes to the notebook, without a graph. Raises CannotTravel
    where the value would be needed here, and where the ranks that had it have ended.
    """

    __slots__ = ()
    where = "on the ranks"
    remedy = "A %%parallel cell that reads it has the object itself; .gather() brings it here."

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return remote().call(self, args, kwargs)

    def gather(self) -> Any:
        """The value as an ordinary object of the notebook. Raises CannotTravel if the ranks have ended."""
        return remote().gather(self)

    def eval(self) -> RankRef:
        """A module on the ranks, set to evaluate; itself."""
        return self.train(False)

    def train(self, mode: bool = True) -> RankRef:
        """A module on the ranks, set to train, or with False to evaluate; itself."""
        return remote().flag(self, f"_nbpar_answer = _nbpar_value.train({bool(mode)}) is None")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """A copy of the module's or optimiser's state, in the notebook."""
        remote_ = remote()
        return remote_.ask(self, remote_.STATE, args, kwargs)


def remote() -> Any:
    from nbpar import remote

    return remote


class KernelRef(Absent):
    """On a rank: a value that stayed in the notebook's own process."""

    __slots__ = ()
    where = "in the notebook's own process"
    remedy = "Use it in a cell without %%parallel, or make it within this cell."


class LostRef(Absent):
    """A value that was on ranks that have ended since."""

    __slots__ = ()
    where = "lost"

    @classmethod
    def of(cls, ref: Absent) -> LostRef:
        reason = f"It was on ranks that have ended since. {checkpoint(ref)}"
        return cls(ref._key, ref.name, ref.type, reason, ref.size, ref.mode, ref.saved)

    def __str__(self) -> str:
        return f"{self.name} ({self.type}) is {self.where}. {self.reason}"


def checkpoint(ref: Absent) -> str:
    """Where the value can be had again, in words."""
    return f"{ref.name} = nbpar.load({ref.saved!r}) reads its last checkpoint." if ref.saved else "It was never saved."


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"


class RefKind(kinds.Fixed):
    """Comes back as the other side's own object."""

    def reduce(self, o: Absent, pickler: Any) -> Any:
        return resolve, (pickler.port, *o.__reduce__())


def resolve(port: Any, cls: type[Absent], fields: tuple[Any, ...]) -> Any:
    return port.resolve(fields[0], cls(*fields))


REF = RefKind()
