"""`python -m nbpar COMMAND`: what nbpar does outside a notebook.

Each command is a module with `main(arguments) -> exit status`, imported only when asked for.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "demo": ("nbpar.demo", "run the demo notebook over two ranks and compare with one process"),
    "doctor": ("nbpar.doctor", "say what is here, how to mend what is missing, and try two ranks"),
    "kernel": ("nbpar.kernel.commands", "install, list and remove kernels that come with their ranks"),
    "where": ("nbpar.where", "show where the ranks of running cells are: Python stack and collective"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m nbpar COMMAND [-h] …", "", *lines])


def main(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"nbpar: no command {name!r}.\n\n{usage()}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    status: int = importlib.import_module(module).main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
