"""Tab on a %parallel or %%parallel line: commands, modes, options, their choices, and variables where an option takes names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from IPython.core.completer import SimpleCompletion, context_matcher

from nbpar.options import CELL, COMMANDS, KEPT, MODES, PANELS, PLAN, WORLD, Option, name, names, panels
from nbpar.plan.plan import MODES as PLANNED

LINE = re.compile(r"(%%?)parallel\s+(.*)$")


def candidates(line: str, variables: Iterable[str]) -> list[str]:
    """What may come at the end of `line`, which is the text up to the cursor."""
    match = LINE.search(line)
    if match is None:
        return []
    cell, words = match[1] == "%%", match[2].split(" ")
    *before, word = words
    if not cell and before[:1] == ["config"]:
        return _kept(word)
    options = _options(cell, before)
    option = next((option for option in options if before and option.flag == before[-1]), None)
    if option is not None and option.read is not None:
        return _values(option, word, variables)
    flags = [option.flag for option in options if option.flag not in before]
    return [text for text in [*_heads(cell, before), *flags] if text.startswith(word)]


def _heads(cell: bool, before: list[str]) -> Iterable[str]:
    """What may stand before the options: a mode, or a command, and after `plan` a mode."""
    if not before:
        return MODES if cell else COMMANDS
    return PLANNED if not cell and before == ["plan"] else ()


def _options(cell: bool, before: list[str]) -> tuple[Option, ...]:
    if not cell:
        return {"start": WORLD, "plan": PLAN}.get(before[0] if before else "", ())
    mode = before[0] if before and before[0] in MODES else "each"
    return tuple(option for option in CELL if not option.modes or mode in option.modes)


def _values(option: Option, word: str, variables: Iterable[str]) -> list[str]:
    """Values of an option: its choices, panels, variables."""
    if option.read is panels:
        return _another(word, (*PANELS, "none", "all"))
    known = sorted(variable for variable in variables if not variable.startswith("_"))
    if option.read is names:
        return _another(word, known)
    return [value for value in (known if option.read is name else option.choices) if value.startswith(word)]


def _another(word: str, known: Iterable[str]) -> list[str]:
    """The last of several values with commas between them."""
    done, comma, start = word.rpartition(",")
    return [done + comma + value for value in known if value.startswith(start)]


def _kept(word: str) -> list[str]:
    """`config NAME=VALUE`"""
    key, equals, value = word.partition("=")
    if equals:
        return [f"{key}={text}" for text in _another(value, (*PANELS, "none", "all"))] if key in KEPT else []
    return [f"{known}=" for known in KEPT if known.startswith(key)]


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
