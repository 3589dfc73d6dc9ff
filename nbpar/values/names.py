"""Which names of a namespace are the person's, and which are IPython's and torch's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

RESULT = "_"  # under which a last expression's value travels

RESERVED = re.compile(
    r"__(name|doc|package|loader|spec|file|builtins?|annotations|cached|session|vsc_ipynb_file)__"
    r"|_{1,3}|_i{1,3}|_[iod]h|_sh|_i?\d+|_exit_code"
    r"|__(compiled_fn|resume_at|builtins_dict_|import)_.*"  # of torch.compile, in a function's module
)
RESULTS = re.compile(r"_{1,3}|_\d+|Out|_oh")
SHELL = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open"})


def is_persons(name: str, value: Any) -> bool:
    """False for what Python, IPython or torch put there. `exit` and the like are the person's if they have a value of their own."""
    if not isinstance(name, str):
        return False
    if name[:1] == "_":
        return not RESERVED.fullmatch(name)
    if name not in SHELL:
        return True
    if name in ("In", "Out"):
        return type(value) not in (list, dict)
    return (getattr(value, "__module__", None) or type(value).__module__).split(".")[0] not in ("IPython", "_io", "io")


def results(namespace: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the names under which IPython keeps what cells gave."""
    found = [name for name in names if RESULTS.fullmatch(name) and name in namespace]
    return sorted(name for name in found if not is_persons(name, namespace[name]))


def persons(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The person's variables."""
    return {name: value for name, value in list(namespace.items()) if is_persons(name, value)}
