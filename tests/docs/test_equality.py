"""The table of programs and modes is that of the programs that the tests run, and what is not equal there has a reason."""

from __future__ import annotations

import re

import pytest

from tests.zoo import REFUSED, ZOO
from tools.equality import COLUMNS, PAGE

ROWS = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
REMARK = r"( \[\d+(, \d+)*\])"


@pytest.mark.parametrize("name", ZOO)
def test_every_pair_is_equal_or_refused_with_its_reason(name: str) -> None:
    (row,) = [entries for entries in ROWS if entries[0] == name.removeprefix("style: ") and len(entries) == len(COLUMNS) + 1]
    for column, entry in zip(COLUMNS, row[1:], strict=True):
        assert re.fullmatch(rf"(0|\de-\d\d){REMARK}?|refused{REMARK}", entry), "run `python -m tools.equality`"
        assert entry.startswith("refused") == (name in REFUSED and column.title.startswith(("model, ", "model --micro", "hybrid")))
