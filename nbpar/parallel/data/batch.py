"""`--batch NAMES`: wherever the cell binds one of these names, this rank's rows are bound."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

ROWS = "__nbpar_rows__"


class Binder(ast.NodeTransformer):
    """Adds `X = __nbpar_rows__(X)` behind each binding of X, unless it is made from a batch already."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def visit(self, node: ast.AST) -> Any:
        node = super().visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [new for statement in statements for new in (statement, *self.after(statement))])
        if isinstance(node, ast.For | ast.AsyncFor):
            node.body[:0] = self.rows_of(node.target, node.iter)
        if isinstance(node, ast.With | ast.AsyncWith):
            node.body[:0] = [new for item in node.items for new in self.rows_of(item.optional_vars, item.context_expr)]
        return ast.fix_missing_locations(node) if isinstance(node, ast.Module) else node

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        self.generic_visit(node)
        if node.target.id in self.names and not self.reads_batch(node.value):
            node.value = call(node.value)
        return node

    def after(self, statement: ast.AST) -> list[ast.stmt]:
        if isinstance(statement, ast.Assign):
            return [new for target in statement.targets for new in self.rows_of(target, statement.value)]
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            return self.rows_of(statement.target, statement.value)
        return []

    def rows_of(self, target: ast.AST | None, source: ast.AST) -> list[ast.stmt]:
        """Statements that cut the batches among the targets."""
        if target is None or self.reads_batch(source):
            return []
        bound = [node.id for node in ast.walk(target) if isinstance(node, ast.Name) and node.id in self.names]
        return [
            ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], call(ast.Name(name, ast.Load()))), source) for name in bound
        ]

    def reads_batch(self, source: ast.AST) -> bool:
        return any(isinstance(node, ast.Name) and node.id in self.names for node in ast.walk(source))


def call(value: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(ROWS, ast.Load()), [value], [])


@contextmanager
def bound(names: Sequence[str], rows: Callable[[Any], Any], namespace: dict[str, Any]) -> Iterator[None]:
    """While it lasts, the cells of the running IPython shell are changed by Binder."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    binder = Binder(names)
    namespace[ROWS] = rows
    if shell is not None:
        shell.ast_transformers.append(binder)
    try:
        yield
    finally:
        namespace.pop(ROWS, None)
        if shell is not None and binder in shell.ast_transformers:
            shell.ast_transformers.remove(binder)
