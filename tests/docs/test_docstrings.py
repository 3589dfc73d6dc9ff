"""Everything public says what it is: what `nbpar` names, and the members of what that returns."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import nbpar
from nbpar import errors
from nbpar.plan.plan import Plan, make
from nbpar.ranks.world import World
from nbpar.record import Last

ERRORS = {name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, Exception)}
CLASSES = (World, Last, Plan, nbpar.RankValues, nbpar.RankRef, errors.RankDied, errors.CellError, errors.PeerFailed)


def public() -> Iterator[tuple[str, Any]]:
    """(name, what it is) of everything that a person may use."""
    for name in nbpar.__all__:
        yield f"nbpar.{name}", getattr(nbpar, name)
    yield "nbpar.plan()", make
    for name, one in vars(errors).items():
        if inspect.isclass(one) and issubclass(one, errors.NbparError):
            yield f"nbpar.errors.{name}", one
    for kind in CLASSES:
        for name, member in vars(kind).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property | cached_property)):
                yield f"{kind.__name__}.{name}", member


def test_everything_public_says_what_it_is() -> None:
    found = dict(public())
    assert {"nbpar.split", "World.run", "Last.figures", "Plan.memory", "RankValues.cat", "nbpar.errors.RankDied"} <= found.keys()
    assert [name for name, what in found.items() if not (what.__doc__ or "").strip()] == []


def functions() -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """(where, function, its docstring and its class's) of all that have one and no underscore, but for `__init__`.

    Not of the modes: what they raise is raised in a cell, by lines of the person's own.
    """
    root = Path(nbpar.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if file.is_relative_to(root / "parallel"):
            continue
        tree = ast.parse(file.read_text())
        for owner in (tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))):
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and node.name.strip("_") == node.name and (text := ast.get_docstring(node)):
                    yield f"{file.relative_to(root)}:{node.lineno} {node.name}", node, f"{ast.get_docstring(owner)}\n{text}"


def raised(function: ast.FunctionDef) -> set[str]:
    """nbpar's errors in its own `raise` statements, not in those of functions within it."""
    found, todo = set(), list[ast.AST](function.body)
    while todo:
        match node := todo.pop():
            case ast.FunctionDef() | ast.Lambda():
                continue
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name)) | ast.Name(id=name)):
                found.add(name)
        todo += ast.iter_child_nodes(node)
    return found & ERRORS


def arguments(function: ast.FunctionDef) -> dict[str, str]:
    """The annotation of each argument."""
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {each.arg: ast.unparse(each.annotation) for each in given if each.annotation}


def test_the_errors_that_a_function_raises_are_named() -> None:
    missing = [(where, sorted(unnamed)) for where, function, text in functions() if (unnamed := raised(function) - words(text))]
    assert missing == []


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def is_time(name: str, kind: str) -> bool:
    return name in ("timeout", "seconds") and kind.split(" ", maxsplit=1)[0] in ("float", "int")


def is_memory(name: str, kind: str) -> bool:
    return name == "nbytes"


@pytest.mark.parametrize("is_one, unit", [(is_time, r"seconds|\bms\b"), (is_memory, r"\bbytes\b|MiB")], ids=["durations", "memory"])
def test_units_are_said(is_one: Callable[[str, str], bool], unit: str) -> None:
    concerned = [
        (where, text) for where, function, text in functions() if any(is_one(*each) for each in arguments(function).items())
    ]
    assert concerned and [where for where, text in concerned if not re.search(unit, text)] == []


def test_shapes_of_tensors_between_ranks_are_said() -> None:
    concerned = {
        where: text
        for where, function, text in functions()
        if where.startswith("comm/") and any("Tensor" in kind for kind in arguments(function).values())
    }
    assert len(concerned) > 10 and [where for where, text in concerned.items() if not re.search(r"shape|\brows\b", text)] == []
