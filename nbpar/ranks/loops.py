"""How far a cell's loops are: its two outermost `for`s count their turns.

    for epoch in range(10):                      for epoch in turns(range(10), 0):
        for x, y in loader:              →           for x, y in turns(loader, 1):

A turn is counted in C, without a Python frame, a reference to the item, or a look at it: tracebacks and lifetimes stay as they are.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable
from functools import partial
from itertools import count
from operator import length_hint
from typing import Any

NAME = "__nbpar_turns__"
DEEPEST = 1


class Loops(ast.NodeTransformer):
    """The loops of the running cell, outermost first. An IPython AST transformer."""

    def __init__(self) -> None:
        super().__init__()
        self._counters: list[tuple[count[int], int]] = []
        setattr(builtins, NAME, self.turns)
        self.on = False

    def begin(self, on: bool) -> None:
        """A cell begins. on: whether its turns are counted."""
        self.on, self._counters = on, []

    def visit(self, tree: Any) -> Any:
        """The cell's syntax tree, its outermost loops counted."""
        return _Counted().visit(tree) if self.on else tree

    def turns(self, items: Iterable[Any], level: int) -> Iterable[Any]:
        """The same items. They are only looked through by `filter`: its function, `next` of a counter, is always true."""
        counter = count(1)
        try:
            counted = filter(partial(next, counter), items)
        except Exception:
            return items  # the loop itself raises
        self._counters[level:] = [(counter, length(items))]
        return counted

    def now(self) -> tuple[tuple[int, int], ...]:
        """(items begun, length or 0) by level; from any thread."""
        return tuple((int(repr(counter)[6:-1]) - 1, size) for counter, size in list(self._counters))


class _Counted(ast.NodeTransformer):
    """Puts `turns` around what the outermost loops go through."""

    level = 0

    def visit_For(self, node: ast.For) -> ast.For:
        if self.level <= DEEPEST:
            function = ast.Name(NAME, ast.Load())
            call = ast.Call(function, [node.iter, ast.Constant(self.level)], [])
            node.iter = ast.fix_missing_locations(ast.copy_location(call, node.iter))
            ast.copy_location(function, node.iter)
        self.level += 1
        node.body = [self.visit(line) for line in node.body]
        self.level -= 1
        node.orelse = [self.visit(line) for line in node.orelse]
        return node

    def _elsewhere(self, node: Any) -> Any:
        """What is defined here runs at another time."""
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _elsewhere


def length(items: Any) -> int:
    """How many items, where that can be told without going through them; else 0."""
    try:
        if isinstance(items, (enumerate, zip)):
            inner = items.__reduce__()[1]
            found = [length(one) for one in (inner[:1] if isinstance(items, enumerate) else inner)]
            return min(found, default=0)
        return length_hint(items, 0)
    except Exception:
        return 0
