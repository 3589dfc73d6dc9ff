"""A grid as an HTML table that needs no script and no style sheet: a glyph in each cell, colours inline.

That is what an untrusted notebook, nbconvert and sites that show notebooks let through; some of them drop the colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from nbpar.display.grid import LOOKS, Cell, Grid, runs, shorten

TABLE = "border-collapse:separate;border-spacing:1px;font-size:12px;margin:4px 0"
TITLE = "text-align:left;caption-side:top;font-weight:bold;white-space:nowrap;width:0"  # as wide as it is, not the table
PLAIN = "padding:1px 4px;text-align:center;border:0;white-space:nowrap"
LEFT = "padding:1px 6px;text-align:left;border:0;font-weight:normal;white-space:nowrap"
SMALL = "font-size:12px;opacity:.8"
SEPARATE = 16  # columns up to which every cell is drawn by itself, with a label
SHORT = 4  # characters of a head that does not make its column wider
NAME = 60  # characters of a row's name


def table(grid: Grid) -> str:
    """The grid as <table>, its title as <caption>, and below it the legend."""
    head = "".join(f'<th colspan="{count}" scope="col" style="{PLAIN}">{escape(name)}</th>' for count, name in heads(grid))
    aside = f'<th style="{LEFT}"></th>' if any(grid.notes) else ""
    body = "".join(_row(grid, number) for number in range(len(grid.rows)))
    caption = f'<caption style="{TITLE}">{escape(grid.title)}</caption>'
    below = [f"{_key(look.glyph, look.paint, look.ink)} {escape(look.words)}" for look in grid.legend]
    lines = [" &nbsp; ".join(below), *map(escape, grid.footer.splitlines())]
    after = "".join(f'<div style="{SMALL}">{line}</div>' for line in lines if line)
    return (
        f'<table style="{TABLE}">{caption}<thead><tr><th scope="col" style="{LEFT}">{escape(grid.corner)}</th>{head}{aside}</tr>'
        f"</thead><tbody>{body}</tbody></table>{after}"
    )


def folded(summary: str, html: str, *, opened: bool = False) -> str:
    """Something behind one line that opens it."""
    return f'<details{" open" if opened else ""}><summary style="font-size:12px">{escape(summary)}</summary>{html}</details>'


def heads(grid: Grid) -> Iterable[tuple[int, str]]:
    """Column heads as (columns that they stand over, name): every few columns where there are many, the outermost of long ones."""
    count = len(grid.columns)
    if count > SEPARATE and max(map(len, grid.columns)) > SHORT:
        yield count // 2, grid.columns[0]
        yield count - count // 2, grid.columns[-1]
        return
    step = next(step for step in (1, 4, 8, 16, 32, 64, count) if count / step <= SEPARATE or step == count)
    for at in range(0, count, step):
        yield min(step, count - at), grid.columns[at]


def _row(grid: Grid, number: int) -> str:
    row, name = grid.cells[number], grid.rows[number]
    if len(row) <= SEPARATE:
        cells = "".join(_cell(cell, 1, cell.label or _says(grid, number, k)) for k, cell in enumerate(row))
    else:
        cells = "".join(_cell(cell, count, cell.label) for count, cell in runs(row))
    note = f'<td style="{LEFT};opacity:.8">{escape(grid.notes[number])}</td>' if any(grid.notes) else ""
    return f'<tr style="background:none"><th scope="row" style="{LEFT}">{escape(shorten(name, NAME))}</th>{cells}{note}</tr>'


def _says(grid: Grid, row: int, column: int) -> str:
    cell = grid.cells[row][column]
    return f"{grid.rows[row]}, {grid.columns[column]}: {cell.text or LOOKS[cell.state].words}"


def _cell(cell: Cell, count: int, label: str) -> str:
    look = LOOKS[cell.state]
    style = f"{PLAIN};background-color:{look.paint};color:{look.ink}" if look.paint else PLAIN
    span = f' colspan="{count}"' if count > 1 else ""
    title = f' title="{escape(label)}"' if label else ""
    shown = escape(cell.text) if cell.text else look.glyph * count
    return f'<td{span}{title} style="{style}">{shown}</td>'


def _key(glyph: str, paint: str, ink: str) -> str:
    return f'<span style="background-color:{paint};color:{ink};padding:0 4px">{glyph}</span>' if paint else glyph
