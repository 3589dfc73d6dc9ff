from __future__ import annotations

import pytest

from nbpar import options
from nbpar.completion import candidates
from nbpar.errors import OptionError


@pytest.mark.parametrize(
    ("line", "mode", "given"),
    [
        ("", "each", {}),
        ("--on 0,2-4", "each", {"on": (0, 2, 3, 4)}),
        ("data -n 4 --batch X,y --quiet", "data", {"size": 4, "batch": ("X", "y"), "quiet": True}),
        ("data --local-batchnorm --aggregate central", "data", {"local_batchnorm": True, "aggregate": "central"}),
        ("--out a, --keep b", "each", {"out": ("a",), "keep": ("b",)}),
    ],
)
def test_a_cells_line(line: str, mode: str, given: dict[str, object]) -> None:
    assert options.cell_line(line) == (mode, given)


@pytest.mark.parametrize("line", ["--qui", "data --on 1", "--out", "-n x", 'data "unclosed', "data extra"])
def test_a_wrong_line(line: str) -> None:
    with pytest.raises(OptionError):
        options.cell_line(line)


def test_a_commands_line() -> None:
    assert options.command_line("start -n 2 --mpi-args '-bind-to core'") == ("start", {"size": 2, "mpi_args": "-bind-to core"})
    assert options.command_line("") == ("status", {})
    with pytest.raises(OptionError, match="no option"):
        options.command_line("stop -n 2")


def test_every_option_is_in_the_help() -> None:
    for option in (*options.CELL, *options.WORLD):
        assert option.flag in options.usage()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%%parallel da", ["data"]),
        ("%parallel st", ["start", "stop", "status"]),
        ("%%parallel data --agg", ["--aggregate"]),
        ("%%parallel data --aggregate c", ["central"]),
        ("%%parallel data --batch Xb,y", ["Xb,yb"]),
        ("%parallel start --dev", ["--device"]),
        ("%parallel stop --dev", []),
        ("x = %par", []),
    ],
)
def test_tab(line: str, found: list[str]) -> None:
    assert candidates(line, {"Xb": 1, "yb": 2, "_hidden": 3}) == found
