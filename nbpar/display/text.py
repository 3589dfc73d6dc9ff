"""A grid as text, for terminals and for whatever shows nothing else."""

from __future__ import annotations

from nbpar.display.grid import Grid, joined, shorten

NAME = 36  # characters of a row's name


def text(grid: Grid) -> str:
    """The grid in lines of monospaced characters, one column wide where cells have glyphs only."""
    names = [shorten(name, NAME) for name in grid.rows]
    left = max(map(len, [grid.corner, *names]), default=0)
    wide = any(cell.text for row in grid.cells for cell in row)
    body, heads = (_wide if wide else _narrow)(grid)
    lines = [grid.title]
    for number, head in enumerate(heads):
        lines.append(f"  {(grid.corner if number == len(heads) - 1 else '').ljust(left)}  {head}".rstrip())
    notes = grid.notes or ("",) * len(names)
    for name, cells, note in zip(names, body, notes, strict=True):
        lines.append(f"  {name.ljust(left)}  {cells}  {note}".rstrip())
    if grid.legend:
        lines.append("  " + joined(f"{look.glyph} {look.words}" for look in grid.legend))
    lines += [f"  {line}" for line in grid.footer.splitlines()]
    return "\n".join(lines)


def _wide(grid: Grid) -> tuple[list[str], list[str]]:
    """Cells with words: columns as wide as they need."""
    table = [[cell.shown for cell in row] for row in grid.cells]
    widths = [
        max(len(shorten(head, 16)), *(len(row[k]) for row in table)) if table else len(head) for k, head in enumerate(grid.columns)
    ]
    heads = [" ".join(shorten(head, 16).rjust(width) for head, width in zip(grid.columns, widths, strict=True))]
    return [" ".join(item.rjust(width) for item, width in zip(row, widths, strict=True)) for row in table], heads


def _narrow(grid: Grid) -> tuple[list[str], list[str]]:
    """Cells with glyphs: side by side, spaced if they are few. Short heads are written downwards, of long ones the outermost."""
    space = " " if len(grid.columns) <= 32 else ""
    deep = max(map(len, grid.columns), default=0)
    width = len(space.join("x" * len(grid.columns)))
    heads = [grid.columns[0] + grid.columns[-1].rjust(width - len(grid.columns[0]))] if deep > 4 else []
    heads = heads or [space.join(head.rjust(deep)[k] for head in grid.columns) for k in range(deep)]
    return [space.join(cell.shown for cell in row) for row in grid.cells], heads
