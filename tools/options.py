"""docs/options.md from nbpar/options.py: `python -m tools.options`. A test compares the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nbpar.options import CELL, COMMANDS, KEPT, MODES, PANELS, PLAN, WORLD, Option

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"


def page() -> str:
    """The whole page."""
    parts = [
        "# Options of the magics",
        "<!-- Made by `python -m tools.options` from nbpar/options.py. -->",
        "`%%parallel?` shows this in a notebook; Tab completes modes, commands, options, choices, panels and variables.",
        "## `%%parallel [MODE] [OPTIONS]`",
        "Runs the cell below it on the ranks. Modes:",
        table(("mode", "what happens"), [(f"`{mode}`", text) for mode, text in MODES.items()]),
        "Without a mode it is `each`. Options; those with modes beside them are for these modes only:",
        table(("option", "modes", "meaning"), [(flag(o), ", ".join(f"`{mode}`" for mode in o.modes), meaning(o)) for o in CELL]),
        f"Panels: {', '.join(f'`{panel}`' for panel in PANELS)}; `all` and `none` are words for every panel and no panel.",
        "## `%parallel COMMAND [OPTIONS]`",
        table(("command", "what it does"), [(f"`{command}`", cell(text)) for command, text in COMMANDS.items()]),
        "Without a command it is `status`.",
        "### Options of `%parallel start`",
        options(WORLD),
        "### Options of `%parallel plan [MODE]`",
        options(PLAN),
        "### Names that `%parallel config NAME=VALUE` keeps",
        ", ".join(f"`{name}`" for name in KEPT) + ": as in the option of the same name.",
    ]
    return "\n\n".join(parts) + "\n"


def options(chosen: Sequence[Option]) -> str:
    return table(("option", "meaning"), [(flag(option), meaning(option)) for option in chosen])


def flag(option: Option) -> str:
    return f"`{f'{option.flag} {option.metavar}'.strip().replace('|', '/')}`"  # no code in a table has a | that all viewers show


def meaning(option: Option) -> str:
    choices = f"; one of {', '.join(f'`{choice}`' for choice in option.choices)}" if option.choices else ""
    return cell(option.help) + choices


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
