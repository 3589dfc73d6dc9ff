"""A grid in its renderings: text, table, state of the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpar.display.grid import LOOKS, Cell, Grid, bar, level, shorten
from nbpar.display.table import table
from nbpar.display.text import text


def grid(rows: int, columns: int, *, words: bool = False, name: str = "layer") -> Grid:
    states = ["own", "none", "replica"]
    cells = tuple(tuple(Cell(states[(r + c) % 3], f"{r}.{c}" if words else "") for c in range(columns)) for r in range(rows))
    return Grid(
        "test", "A title", "layer \\ rank", tuple(f"{name}{r}" for r in range(rows)), tuple(map(str, range(columns))), cells
    )


class Table(HTMLParser):
    """Rows of (tag, columns spanned, text)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, int, str]]] = []
        self.tags: set[str] = set()
        self.closed = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append((tag, int(dict(attrs).get("colspan") or 1), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.closed = True

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and not self.closed:
            tag, span, before = self.rows[-1][-1]
            self.rows[-1][-1] = tag, span, before + data


def test_text_has_a_glyph_for_each_cell() -> None:
    assert text(grid(2, 3)).splitlines()[:4] == [
        "A title",
        "  layer \\ rank  0 1 2",
        "  layer0        ■ · ▨",
        "  layer1        · ▨ ■",
    ]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 64), (40, 64), (3, 5)])
def test_every_row_of_the_table_is_as_wide_as_the_grid(rows: int, columns: int) -> None:
    parsed = Table(table(grid(rows, columns)))
    assert [sum(span for _, span, _ in row[1:]) for row in parsed.rows[: rows + 1]] == [columns] * (rows + 1)
    assert not parsed.tags & {"script", "style", "svg", "img", "link", "iframe"}


def test_glyphs_of_joined_cells_are_repeated() -> None:
    parsed = Table(table(Grid("t", "T", "x", ("a",), tuple(map(str, range(20))), ((Cell("own"),) * 20,))))
    assert parsed.rows[1][1] == ("td", 20, "■" * 20)


def test_the_page_gets_every_cell() -> None:
    made = grid(3, 7)
    state = json.loads(json.dumps(made.state()))
    for row, packed in zip(made.cells, state["cells"], strict=True):
        states = [cell[1] for cell in packed for _ in range(cell[0])]
        assert states == [cell.state for cell in row]


def test_names_are_escaped() -> None:
    html = table(grid(1, 1, name="<script>alert(1)</script>"))
    assert "<script" not in html


def test_states_differ_without_colour() -> None:
    glyphs = [look.glyph for look in LOOKS.values()]
    assert len(set(glyphs)) == len(glyphs)


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("state", [state for state, look in LOOKS.items() if look.paint])
def test_ink_is_readable_on_its_paint(state: str) -> None:
    """The ratio that WCAG asks for."""
    light, dark = sorted((luminance(LOOKS[state].paint), luminance(LOOKS[state].ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


@given(st.text(min_size=0, max_size=200), st.integers(8, 60))
def test_shortened_names_fit(name: str, width: int) -> None:
    assert len(shorten(name, width)) <= max(width, 1)


@given(st.floats(0, 1))
def test_bars_are_as_long_as_asked(share: float) -> None:
    assert len(bar(share, 20)) == 20


def test_levels_grow() -> None:
    assert [level(amount, 100) for amount in (0, 1, 30, 60, 100)] == ["none", "level1", "level2", "level3", "level4"]


def test_a_grid_with_missing_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of 1"):
        Grid("t", "T", "x", ("a", "b"), ("0",), ((Cell(),),))
