"""Tab on a %parallel or %%parallel line: commands, modes, options, their choices, and variables where an option takes names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from IPython.core.completer import SimpleCompletion, context_matcher

from nbpar.options import CELL, COMMANDS, MODES, WORLD, Option, names

LINE = re.compile(r"(%%?)parallel\s+(.*)$")


def candidates(line: str, variables: Iterable[str]) -> list[str]:
    """What may come at the end of `line`, which is the text up to the cursor."""
    match = LINE.search(line)
    if match is None:
        return []
    cell, words = match[1] == "%%", match[2].split(" ")
    *before, word = words
    options = _options(cell, before)
    option = next((option for option in options if before and option.flag == before[-1]), None)
    if option is not None and option.read is names:
        done, comma, start = word.rpartition(",")
        return [done + comma + name for name in sorted(variables) if name.startswith(start) and not name.startswith("_")]
    if option is not None and option.read is not None:
        return [choice for choice in option.choices if choice.startswith(word)]
    heads = [] if before else list(MODES if cell else COMMANDS)
    flags = [option.flag for option in options if option.flag not in before]
    return [text for text in [*heads, *flags] if text.startswith(word)]


def _options(cell: bool, before: list[str]) -> tuple[Option, ...]:
    if not cell:
        return WORLD if before and before[0] == "start" else ()
    mode = before[0] if before and before[0] in MODES else "each"
    return tuple(option for option in CELL if not option.modes or mode in option.modes)


class Completion:
    """Added to and removed from a shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

        @context_matcher()  # type: ignore[untyped-decorator]
        def parallel_matcher(context: Any) -> dict[str, Any]:
            line = context.line_with_cursor[: context.cursor_position]
            found = [SimpleCompletion(text, type="param") for text in candidates(line, shell.user_ns)]
            return {"completions": found, "suppress": bool(found), "matched_fragment": line.rpartition(" ")[2]}

        self._matcher = parallel_matcher

    def add(self) -> None:
        self._shell.Completer.custom_matchers.append(self._matcher)

    def remove(self) -> None:
        if self._matcher in self._shell.Completer.custom_matchers:
            self._shell.Completer.custom_matchers.remove(self._matcher)
