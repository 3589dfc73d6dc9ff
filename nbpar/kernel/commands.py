"""`python -m nbpar kernel install|list|remove`."""

from __future__ import annotations

import argparse
import os
import sys

from nbpar.errors import NbparError
from nbpar.kernel.spec import Spec, install, installed, remove


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m nbpar kernel", description="Kernels that come with their ranks.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser("install", help="write a kernelspec: notebooks opened with it have their ranks ready")
    add.add_argument("-n", dest="size", type=count, metavar="N", help="number of ranks (default: the GPUs, else the cores)")
    add.add_argument("--name", default="", help="by which programs ask for the kernel (default: nbpar-N)")
    add.add_argument("--display-name", default="", metavar="TEXT", help='what front ends show (default: "Python 3 (N MPI ranks)")')
    place = add.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="for this user (default outside environments)")
    place.add_argument("--sys-prefix", action="store_true", help="for this Python environment (default inside one)")
    place.add_argument("--prefix", metavar="P", help="below P/share/jupyter/kernels")
    add.add_argument("--mpiexec", metavar="PATH", help="the MPI launcher (default: see `%%parallel?`)")
    add.add_argument("--mpi-args", default="", metavar='"…"', help="more options for the launcher")
    add.add_argument(
        "--interface", metavar="ADDRESS", help="where the kernel listens for its ranks (default: nowhere, on one host)"
    )
    add.add_argument(
        "--by-launcher", action="store_true", help="the launcher starts the kernel too, where only it may start processes"
    )
    add.add_argument(
        "--env",
        action="append",
        default=[],
        type=variable,
        metavar="K=V",
        help="a variable of the kernel and its ranks; repeatable",
    )
    add.set_defaults(run=_install)

    commands.add_parser("list", help="the kernelspecs of nbpar's").set_defaults(run=_list)

    take = commands.add_parser("remove", help="remove kernelspecs of nbpar's")
    take.add_argument("names", nargs="+", metavar="NAME")
    take.set_defaults(run=_remove)
    return whole


def count(text: str) -> int:
    if not 1 <= (number := int(text)) <= 512:
        raise argparse.ArgumentTypeError(f"{text}: a world has between 1 and 512 ranks")
    return number


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V")
    return name, value


def _install(chosen: argparse.Namespace) -> None:
    fields = ("size", "name", "display_name", "mpiexec", "mpi_args", "interface", "by_launcher")
    spec = Spec(**{name: getattr(chosen, name) for name in fields}, env=dict(chosen.env))
    prefix = chosen.prefix or (sys.prefix if chosen.sys_prefix or (in_environment() and not chosen.user) else None)
    folder = install(spec, user=prefix is None, prefix=prefix)
    print(f"{spec.title}: {folder}\nRemove it by `python -m nbpar kernel remove {spec.directory}`.")


def in_environment() -> bool:
    """Whether this Python belongs to a virtual or conda environment."""
    return sys.prefix != sys.base_prefix or os.path.isdir(os.path.join(sys.prefix, "conda-meta"))


def _list(_: argparse.Namespace) -> None:
    found = list(installed())
    width = max((len(spec.name) for spec in found), default=0)
    for spec in found:
        print(f"{spec.name:{width}}  {spec.title}  {spec.folder}")
    if not found:
        print("None is installed. Type `python -m nbpar kernel install -n 4`.")


def _remove(chosen: argparse.Namespace) -> None:
    for name in chosen.names:
        print(f"Removed {remove(name)}.")


def main(arguments: list[str]) -> int:
    chosen = parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except NbparError as error:
        print(f"nbpar: {error}", file=sys.stderr)
        return 1
    return 0
