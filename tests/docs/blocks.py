"""The code blocks of a Markdown page, in order, with what the page says about them in comments that no reader sees.

<!-- first                 code to run before the next block
x = 1
-->
<!-- not run: reason -->   the next block is only read
<!-- raises: Error -->     the next block ends in this error
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIECE = re.compile(
    r"^<!-- first\n(?P<first>.*?)^-->$"
    r"|^<!-- not run: (?P<reason>.+?) -->$"
    r"|^<!-- raises: (?P<raises>\w+) -->$"
    r"|^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    """line: where it stands in the page. printed: the text block right below, which is what the code prints."""

    page: str
    line: int
    language: str
    code: str
    reason: str = ""
    raises: str = ""
    first: list[str] = field(default_factory=list)
    printed: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"


def blocks(page: str) -> list[Block]:
    """All blocks of a page of the repository; a text block below a python block is what that one prints."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    coming, end = Block(page, 0, "", ""), 0
    for piece in PIECE.finditer(text):
        if piece["code"] is None:
            coming.first += [piece["first"]] if piece["first"] else []
            coming.reason, coming.raises = piece["reason"] or coming.reason, piece["raises"] or coming.raises
            continue
        between = text[end : piece.start()].strip()
        if piece["language"] == "text" and found and found[-1].language == "python" and not between:
            found[-1].printed = piece["code"]
        else:
            coming.line, coming.language, coming.code = text.count("\n", 0, piece.start()) + 1, piece["language"], piece["code"]
            found.append(coming)
        coming, end = Block(page, 0, "", ""), piece.end()
    return found


def lacking(expected: str, printed: str) -> list[str]:
    """The lines of `expected` that were not printed. Their order is the ranks' affair; `…` stands for anything."""
    lines = [line.strip() for line in expected.splitlines() if line.strip()]
    return [line for line in lines if not re.search(".*?".join(map(re.escape, line.split("…"))), printed)]
