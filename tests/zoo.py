"""All programs that every mode runs unchanged, by name: they and the modes are the table of docs/equality.md."""

from __future__ import annotations

from tests.cells import Cell, cells
from tests.data import styles  # noqa: F401  (adds its cells)
from tests.data.zoo import CELLS
from tests.model import zoo as layered

LAYERED = {f"{name} (layers)": cell for name, cell in cells(layered.ZOO).items()}
DROPLESS = {f"{name}, without dropout": cell for name, cell in cells(layered.MICRO).items() if name != "mlp"}
ZOO: dict[str, Cell] = {**LAYERED, **DROPLESS, **CELLS}
STYLES = [name for name in ZOO if name.startswith("style: ")]
NOT_SPLIT = {"branch (layers)", *(name for name, cell in CELLS.items() if not cell.split)}  # in mode `data`: whole on every rank

# By modes that place layers: refused on all ranks alike, with these words.
REFUSED = {
    "style: per-sample gradients by vmap": "torch.vmap",
    "style: multi-head attention, padding mask, evaluation": "set_fastpath_enabled",
}
