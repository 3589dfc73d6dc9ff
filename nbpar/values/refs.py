"""Stand-ins for values that cannot travel: they say what it is, where it is and why."""

from __future__ import annotations

from typing import Any, NoReturn

from nbpar.errors import CannotTravel
from nbpar.values import kinds


class Absent:
    """A value that is elsewhere. Using it raises CannotTravel; handing it back gives the other side its own object.

    name: the variable that led to it; type: its class, in words; reason: why it stayed; size: bytes of its data, if known.
    """

    __slots__ = ("__weakref__", "_key", "name", "reason", "size", "type")
    where = "elsewhere"
    remedy = ""

    def __init__(self, key: str, name: str, type: str, reason: str, size: int = 0) -> None:
        self._key, self.name, self.type, self.reason, self.size = key, name, type, reason, size

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
        return type(self), (self._key, self.name, self.type, self.reason, self.size)


class RankRef(Absent):
    """In the notebook: a value that stayed on the ranks. A later parallel cell that reads it has the object itself."""

    __slots__ = ()
    where = "on the ranks"
    remedy = "A %%parallel cell that reads it has the object itself."


class KernelRef(Absent):
    """On a rank: a value that stayed in the notebook's own process."""

    __slots__ = ()
    where = "in the notebook's own process"
    remedy = "Use it in a cell without %%parallel, or make it within this cell."


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"


class RefKind(kinds.Fixed):
    """Comes back as the other side's own object."""

    def reduce(self, o: Absent, pickler: Any) -> Any:
        return resolve, (pickler.port, *o.__reduce__())


def resolve(port: Any, cls: type[Absent], fields: tuple[Any, ...]) -> Any:
    return port.resolve(fields[0], cls(*fields))


REF = RefKind()
