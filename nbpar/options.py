"""The options of the magics: one table from which parsing, help, completion and the documentation are made."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from nbpar.errors import OptionError, suggest
from nbpar.plan.mesh import Mesh, mesh_of
from nbpar.ranks import hosts as places


def ranks(text: str) -> tuple[int, ...]:
    """'0,2' or '0-3': ranks."""
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(chosen))


def names(text: str) -> tuple[str, ...]:
    """'a,b': variable names."""
    given = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in given:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is not a variable name")
    return given


def name(text: str) -> str:
    """'model': one variable name."""
    (given,) = names(text) or ("",)
    return given


def mesh(text: str) -> Mesh:
    """'2x3': replicas of the batch x stages of the layers."""
    return mesh_of("hybrid", text)


PANELS = ("split", "live", "timeline", "aggregation", "what-if", "output")


def panels(text: str) -> tuple[str, ...]:
    """'split,timeline': panels; 'none' and 'all' are words for no and every panel."""
    given = tuple(name.strip() for name in text.split(",") if name.strip())
    if given in (("none",), ("all",)):
        return PANELS if given == ("all",) else ()
    for name in given:
        if name not in PANELS:
            raise argparse.ArgumentTypeError(f"there is no panel {name!r}.{suggest(name, PANELS)} Panels: {', '.join(PANELS)}")
    return given


def hosts(text: str) -> tuple[places.Host, ...]:
    """'a:4,b:4': hosts, and how many ranks each takes."""
    try:
        return places.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """'30' or 'off'."""
    value = 0.0 if text == "off" else float(text)
    if value < 0:
        raise ValueError(text)
    return value


def steps(text: str) -> int:
    """'3': a number of steps, at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


@dataclass(frozen=True)
class Option:
    """One option. modes: where it is allowed; empty for every cell. default: its value where none is given, if none need be."""

    flag: str
    help: str
    read: Callable[[str], Any] | None = str  # None: a flag without a value
    metavar: str = ""
    choices: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    default: Any = None

    @property
    def dest(self) -> str:
        return "size" if self.flag == "-n" else self.flag.removeprefix("--").replace("-", "_")


MODES = {
    "each": "the cell runs as it is on every rank",
    "data": "the batch is split over the ranks; results equal those of one process",
    "model": "the layers are split over the ranks; results equal those of one process",
    "hybrid": "the batch over the rows of a mesh of ranks, the layers over its columns; results equal those of one process",
}

WORLD = (
    Option("-n", "number of ranks (default: the GPUs, else the cores)", int, "N"),
    Option("--backend", "what torch.distributed uses", str, "NAME", choices=("mpi", "gloo", "nccl")),
    Option("--mpiexec", "the MPI launcher (default: see `%parallel?`)", str, "PATH"),
    Option("--mpi-args", "more options for the launcher", str, '"…"'),
    Option("--hosts", "the machines that ranks run on, and how many on each (default: this one)", hosts, "a:4,b:4"),
    Option("--interface", "talk to the ranks over TCP with CURVE on this address (default: Unix sockets)", str, "ADDRESS"),
    Option("--device", "where ranks compute by default", str, "cpu|cuda", choices=("cpu", "cuda")),
)

ROWS, LAYERS = ("data", "hybrid"), ("model", "hybrid")  # modes that split the one and the other

CELL = (
    WORLD[0],
    Option("--on", "run on these ranks only", ranks, "0,2", modes=("each",)),
    Option("--out", "only these variables come back to the notebook", names, "a,b"),
    Option("--keep", "these variables stay on the ranks", names, "a,b"),
    Option("--quiet", "no closing line, no remarks, no panels", None),
    Option("--show", f"panels: {', '.join(PANELS)}, none; else split and live, for cells of two seconds", panels, "a,b"),
    Option(
        "--snapshot",
        "keep the variables in the notebook every so often (default 60)",
        seconds,
        "SECONDS|off",
        modes=("data", "model", "hybrid"),
    ),
    Option("--batch", "these tensors are batches: each rank gets its rows of them", names, "X,y", modes=ROWS),
    Option("--batch-dim", "the dimension of the batch, where it is not found", int, "D", modes=ROWS),
    Option("--aggregate", "how gradients come together", str, "HOW", choices=("allreduce", "central"), modes=ROWS),
    Option("--local-batchnorm", "BatchNorm over each rank's own rows", None, modes=ROWS),
    Option("--mesh", "replicas of the batch x stages of the layers, as in 2x2", mesh, "DxM", modes=("hybrid",)),
    Option("--micro", "the call is split into M micro-batches, so that stages overlap; or auto", str, "M", modes=LAYERS),
    Option("--place", "which rank holds what", str, "name=rank,…", modes=LAYERS),
    Option("--balance", "what the stages have alike", str, "WHAT", choices=("params", "memory", "time"), modes=LAYERS),
    Option(
        "--check",
        "compare with one process after so many optimiser steps (default 3)",
        steps,
        "[K]",
        modes=("data", "model", "hybrid"),
        default=3,
    ),
    Option(
        "--how",
        "layers: each rank some of them; tensor: each rank some columns of each",
        str,
        "HOW",
        choices=("layers", "tensor"),
        modes=LAYERS,
    ),
    Option("--loss", "local: the loss of each rank's own rows", str, "WHERE", choices=("global", "local"), modes=ROWS),
)

COMMANDS = {
    "start": "starts the ranks",
    "stop": "ends the ranks",
    "restart": "ends the ranks and starts fresh ones; the notebook's variables stay",
    "status": "says which ranks run, where and on what",
    "where": "shows each rank's Python stack and the call it waits in, of all notebooks: one whose cell runs cannot ask",
    "plan": "shows who would hold what and what it would cost, without starting a rank: `plan model -n 4`",
    "config": "keeps a choice for all cells: `config show=split,timeline`; says what is kept",
}

PLAN = (
    WORLD[0],
    Option("--mesh", "replicas x stages of a hybrid plan", str, "2x2"),
    Option("--micro", "micro-batches", int, "M"),
    Option("--schedule", "the order of micro-batches", str, "NAME", choices=("gpipe", "1f1b")),
    Option("--how", "what is split: layers, or the columns of each", str, "HOW", choices=("layers", "tensor")),
    Option("--model", "the variable to plan for, where the notebook has several models", name, "NAME"),
    Option("--batch", "the variables that the model is called with", names, "X"),
)
KEPT = ("show",)


class Parser(argparse.ArgumentParser):
    """Errors are OptionErrors with a suggestion; abbreviations are not accepted."""

    def __init__(self, magic: str, options: tuple[Option, ...]) -> None:
        super().__init__(prog=magic, add_help=False, allow_abbrev=False)
        self._flags = [option.flag for option in options]
        for option in options:
            if option.read is None:
                self.add_argument(option.flag, dest=option.dest, action="store_true", default=None, help=option.help)
            else:
                self.add_argument(
                    option.flag, dest=option.dest, type=option.read, metavar=option.metavar, help=option.help,
                    choices=option.choices or None, nargs=None if option.default is None else "?", const=option.default,
                )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{self.prog}: {message}.")

    def read(self, words: list[str]) -> dict[str, Any]:
        """Only the options that were given. Raises OptionError."""
        known, unknown = self.parse_known_args(words)
        if unknown:
            magic = self.prog.split()[0]
            raise OptionError(f"{self.prog} has no option {unknown[0]!r}.{self._hint(unknown[0])} `{magic}?` lists them.")
        return {name: value for name, value in vars(known).items() if value is not None}

    def _hint(self, flag: str) -> str:
        """The option that was meant, or the modes that have this one."""
        elsewhere = [mode for option in CELL if option.flag == flag for mode in option.modes]
        return f" It is an option of {', '.join(elsewhere)}." if elsewhere else suggest(flag, self._flags)


def split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise OptionError(f"This line cannot be read: {line!r} ({error}).") from None


@functools.cache  # made for each cell, it would take a tenth of an empty one
def of_cell(mode: str) -> Parser:
    return Parser(f"%%parallel {mode}", tuple(o for o in CELL if not o.modes or mode in o.modes))


def cell_line(line: str) -> tuple[str, dict[str, Any]]:
    """The mode and options of a `%%parallel` line. Raises OptionError."""
    words = split(line)
    mode = words.pop(0) if words and not words[0].startswith("-") else "each"
    if mode not in MODES:
        raise OptionError(f"%%parallel has no mode {mode!r}.{suggest(mode, MODES)} Modes: {', '.join(MODES)}.")
    given = of_cell(mode).read(words)
    return mode, sized(given) if mode == "hybrid" else given


def sized(given: dict[str, Any]) -> dict[str, Any]:
    """A hybrid cell's options with the number of ranks that its mesh has. Raises OptionError."""
    if "mesh" not in given:
        raise OptionError("%%parallel hybrid needs --mesh DATAxMODEL, as in --mesh 2x2.")
    chosen: Mesh = given["mesh"]
    if given.get("size", chosen.size) != chosen.size:
        raise OptionError(
            f"-n {given['size']} with --mesh {chosen}: the mesh has {chosen.size} ranks. Leave -n out, or write -n {chosen.size}."
        )
    return {**given, "size": chosen.size}


def command_line(line: str) -> tuple[str, dict[str, Any]]:
    """The command and options of a `%parallel` line. Raises OptionError."""
    words = split(line)
    command = words.pop(0) if words and not words[0].startswith("-") else "status"
    if command not in COMMANDS:
        hint = f" Above a cell: `%%parallel {command}`." if command in MODES else suggest(command, COMMANDS)
        raise OptionError(f"%parallel has no command {command!r}.{hint} Commands: {', '.join(COMMANDS)}. `%parallel?` is the help.")
    if command == "config":
        return command, kept(words)
    if command == "plan":
        mode = words.pop(0) if words and not words[0].startswith("-") else "data"
        return command, {"mode": mode, **Parser("%parallel plan", PLAN).read(words)}
    return command, Parser(f"%parallel {command}", WORLD if command == "start" else ()).read(words)


def kept(words: list[str]) -> dict[str, Any]:
    """`show=split,live` as a dict. Raises OptionError."""
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in KEPT or not equals:
            raise OptionError(f"%parallel config: {word!r} is not NAME=VALUE.{suggest(name, KEPT)} Names: {', '.join(KEPT)}.")
        try:
            given[name] = panels(text)
        except argparse.ArgumentTypeError as error:
            raise OptionError(f"%parallel config: {error}.") from None
    return given


def usage() -> str:
    """The text of `%parallel?` and `%%parallel?`."""
    lines = ["%%parallel [MODE] [OPTIONS]    run this cell on the ranks", ""]
    lines += [f"    {mode:<8} {text}" for mode, text in MODES.items()]
    lines += ["", "Options:"]
    for option in CELL:
        left = f"{option.flag} {option.metavar}".strip()
        only = f" [{', '.join(option.modes)}]" if option.modes else ""
        lines.append(f"    {left:<20} {option.help}{only}")
    lines += ["", "%parallel COMMAND", ""]
    lines += [f"    {command:<8} {text}" for command, text in COMMANDS.items()]
    for command, options in (("start", WORLD), ("plan", PLAN)):
        lines += ["", f"Options of {command}:"]
        lines += [f"    {f'{o.flag} {o.metavar}'.strip():<20} {o.help}" for o in options]
    return "\n".join(lines)
