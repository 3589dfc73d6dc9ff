from __future__ import annotations

import pytest

from nbpar import options
from nbpar.completion import candidates
from nbpar.errors import OptionError
from nbpar.plan.mesh import Mesh


@pytest.mark.parametrize(
    ("line", "mode", "given"),
    [
        ("", "each", {}),
        ("--on 0,2-4", "each", {"on": (0, 2, 3, 4)}),
        ("data -n 4 --batch X,y --quiet", "data", {"size": 4, "batch": ("X", "y"), "quiet": True}),
        ("data --local-batchnorm --aggregate central", "data", {"local_batchnorm": True, "aggregate": "central"}),
        ("model --check --quiet", "model", {"check": 3, "quiet": True}),
        ("data --check 5", "data", {"check": 5}),
        ("hybrid --mesh 2x3 --micro 2", "hybrid", {"mesh": Mesh(2, 3), "size": 6, "micro": "2"}),
        ("--out a, --keep b", "each", {"out": ("a",), "keep": ("b",)}),
    ],
)
def test_a_cells_line(line: str, mode: str, given: dict[str, object]) -> None:
    assert options.cell_line(line) == (mode, given)


@pytest.mark.parametrize(
    "line", ["--qui", "--check", "data --check 0", "data --on 1", "--out", "-n x", 'data "unclosed', "data extra"]
)
def test_a_wrong_line(line: str) -> None:
    with pytest.raises(OptionError):
        options.cell_line(line)


def test_a_commands_line() -> None:
    assert options.command_line("start -n 2 --mpi-args '-bind-to core'") == ("start", {"size": 2, "mpi_args": "-bind-to core"})
    assert options.command_line("") == ("status", {})
    with pytest.raises(OptionError, match="no option"):
        options.command_line("stop -n 2")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dta", "no mode 'dta'. Did you mean 'data'?"),
        ("data --agregate central", "no option '--agregate'. Did you mean '--aggregate'? `%%parallel?`"),
        ("data --show splt", "no panel 'splt'. Did you mean 'split'?"),
        ("hybrid --mash 2x2", "Did you mean '--mesh'?"),
        ("hybrid", "needs --mesh DATAxMODEL, as in --mesh 2x2"),
        ("hybrid --mesh 2,2", "mesh 2,2 is not understood: write DATAxMODEL, as in 2x2"),
        ("hybrid --mesh 4", "mesh 4: a hybrid mesh has two axes: write for example 2x2"),
        ("hybrid --mesh 2x0", "both axes are at least 1"),
        ("hybrid --mesh 2x2 -n 3", "-n 3 with --mesh 2x2: the mesh has 4 ranks. Leave -n out, or write -n 4"),
        ("--batch X", "no option '--batch'. It is an option of data, hybrid. `%%parallel?`"),
    ],
)
def test_what_was_meant(line: str, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        options.cell_line(line)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("strat -n 2", "no command 'strat'. Did you mean 'start'?"),
        ("plan model --shedule 1f1b", "no option '--shedule'. Did you mean '--schedule'? `%parallel?`"),
        ("config shw=split", "Did you mean 'show'?"),
    ],
)
def test_what_command_was_meant(line: str, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        options.command_line(line)
    assert said in str(raised.value)


def test_every_option_is_in_the_help() -> None:
    for option in (*options.CELL, *options.WORLD, *options.PLAN):
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
        ("%%parallel data --show split,ti", ["split,timeline"]),
        ("%parallel plan mo", ["model"]),
        ("%parallel plan model --sch", ["--schedule"]),
        ("%parallel plan model --schedule 1", ["1f1b"]),
        ("%parallel plan --model X", ["Xb"]),
        ("%parallel plan model --batch Xb,", ["Xb,Xb", "Xb,yb"]),
        ("%parallel config ", ["show="]),
        ("%parallel config show=split,l", ["show=split,live"]),
        ("%parallel config other=", []),
        ("x = %par", []),
    ],
)
def test_tab(line: str, found: list[str]) -> None:
    assert candidates(line, {"Xb": 1, "yb": 2, "_hidden": 3}) == found
