"""Ranks as a mesh: data-parallel × model-parallel."""

from __future__ import annotations

from dataclasses import dataclass

from nbpar.errors import OptionError

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of them that what-if asks for
SHARDS = (2, 3, 4, 6, 8, 12, 16)  # and over which it splits single layers


@dataclass(frozen=True)
class Mesh:
    """data replicas of a model that is divided over `model` stages. Rank = replica · model + stage."""

    data: int = 1
    model: int = 1

    @property
    def size(self) -> int:
        return self.data * self.model

    def place(self, rank: int) -> tuple[int, int]:
        """(replica, stage) of a rank."""
        return divmod(rank, self.model)

    def holders(self, stage: int) -> tuple[int, ...]:
        """The ranks that hold a stage, one for each replica."""
        return tuple(replica * self.model + stage for replica in range(self.data))

    def __str__(self) -> str:
        return f"{self.data}x{self.model}"


def mesh_of(mode: str, mesh: Mesh | str | int | tuple[int, int] | None, ranks: int | None = None) -> Mesh:
    """What a person wrote, as a Mesh: 4, "2x2", (2, 2) or nothing with a number of ranks. Raises OptionError."""
    if isinstance(mesh, Mesh):
        return mesh
    if mesh is None:
        mesh = ranks or 2
    if isinstance(mesh, str) and mesh.strip().isdigit():
        mesh = int(mesh)
    if isinstance(mesh, int):
        if mode == "hybrid":
            raise OptionError(f"mesh {mesh}: a hybrid mesh has two axes: write for example {max(1, mesh // 2)}x2")
        return Mesh(1, mesh) if mode in ("model", "tensor") else Mesh(mesh, 1)
    try:
        data, model = mesh.lower().split("x") if isinstance(mesh, str) else mesh
        made = Mesh(int(data), int(model))
    except ValueError:
        raise OptionError(f"mesh {mesh} is not understood: write DATAxMODEL, as in 2x2") from None
    if made.data < 1 or made.model < 1:
        raise OptionError(f"mesh {mesh}: both axes are at least 1")
    return made


def shares(rows: int, parts: int) -> tuple[int, ...]:
    """Rows of a batch by part: as even as can be, the first ones larger."""
    return tuple(rows // parts + (part < rows % parts) for part in range(parts))
