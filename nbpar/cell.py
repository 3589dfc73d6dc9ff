"""What a cell reads and binds, found by reading it: more names rather than fewer."""

from __future__ import annotations

import ast
import functools
import re
import symtable
import sys
from dataclasses import dataclass

from IPython.core.inputtransformer2 import TransformerManager

# Calls through which a cell reaches names that its text does not show.
OPEN_ENDED = frozenset({"exec", "eval", "globals", "locals", "vars", "dir", "compile"})
RUN_MAGIC = frozenset({"run_line_magic", "run_cell_magic"})
FILLED_IN = RUN_MAGIC | {"system", "getoutput"}  # their text has $name and {expression} filled in
DOLLAR = re.compile(r"\$\$?([^\W\d]\w*)")
BRACES = re.compile(r"(?<!\{)\{([^{}]+)\}")


@dataclass(frozen=True)
class Names:
    """Global names of a cell.

    reads: those it loads, changes or deletes, builtins included, since a notebook may have given them a value of its own.
    binds: those it assigns, as far as its text shows; what the namespace holds afterwards is the truth.
    dynamic: the calls through which it may reach any other name: then everything has to be there.
    anew: those that it gives a value before it uses them, reading from top to bottom: what they held before hardly matters.
    """

    reads: frozenset[str]
    binds: frozenset[str]
    dynamic: frozenset[str]
    anew: frozenset[str] = frozenset()


@functools.cache
def _transformer() -> TransformerManager:
    return TransformerManager()


@functools.lru_cache(maxsize=256)
def names(source: str) -> Names:
    """The names in a cell's source, magics and shell lines included. Raises SyntaxError where the cell does not parse."""
    python = _transformer().transform_cell(source)
    reader = _Reader()
    tree = ast.parse(python)
    reader.scopes(_symbols(python))
    for node in ast.walk(tree):
        reader.node(node)
    first = FirstUse()
    first.visit(tree)
    reads = frozenset(reader.reads - {"get_ipython"})
    return Names(reads, frozenset(reader.binds), frozenset(reader.dynamic), frozenset(first.stored))


def _symbols(python: str) -> symtable.SymbolTable:
    """The scopes of a text. From Python 3.12 on, comprehensions are no scopes of their own any more (PEP 709); generators are."""
    if sys.version_info >= (3, 12):
        python = ast.unparse(_Generators().visit(ast.parse(python)))
    return symtable.symtable(python, "<cell>", "exec")


class _Generators(ast.NodeTransformer):
    """Comprehensions as generators, which read and bind the same names."""

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp) -> ast.AST:
        return self.generic_visit(ast.GeneratorExp(node.elt, node.generators))

    visit_SetComp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        return self.generic_visit(ast.GeneratorExp(ast.Tuple([node.key, node.value], ast.Load()), node.generators))


class FirstUse(ast.NodeVisitor):
    """Names by what happens to them first, in the order of evaluation: stored or used."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self._used: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store) and node.id not in self._used:
            self.stored.add(node.id)
        elif node.id not in self.stored:
            self._used.add(node.id)

    def _after(self, value: ast.AST | None, node: ast.AST) -> None:
        """The value is computed before the rest happens."""
        if value is not None:
            self.visit(value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._after(node.value, node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._after(node.value, node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._after(node.value, node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._after(node.iter, node)

    visit_AsyncFor = visit_For

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id not in self.stored:
            self._used.add(node.target.id)
        self.generic_visit(node)


class _Reader:
    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.binds: set[str] = set()
        self.dynamic: set[str] = set()

    def scopes(self, scope: symtable.SymbolTable, top: bool = True) -> None:
        for symbol in scope.get_symbols():
            if top or symbol.is_global():
                if symbol.is_referenced():
                    self.reads.add(symbol.get_name())
                if symbol.is_assigned() or symbol.is_imported():
                    self.binds.add(symbol.get_name())
            elif scope.get_type() == "class" and symbol.is_referenced() and symbol.is_assigned():
                self.reads.add(symbol.get_name())  # `x = x` in a class body loads the global x
        for inner in scope.get_children():
            self.scopes(inner, top=False)

    def node(self, node: ast.AST) -> None:
        match node:
            case ast.AugAssign(target=ast.Name(id=name)):
                self.reads.add(name)
            case ast.Delete(targets=targets):
                self.reads.update(target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                self.dynamic.add("import *")
            case ast.Call(func=ast.Attribute(attr=attr), args=args) if attr in FILLED_IN:
                self.filled_in(attr, _texts(args))
            case ast.Call(func=ast.Name(id="exec" | "eval" as call), args=[ast.Constant(value=str(text)), *_]):
                self.nested(text, call)
            case ast.Call(func=ast.Name(id=call)) if call in OPEN_ENDED:
                self.dynamic.add(call)

    def filled_in(self, call: str, texts: list[str]) -> None:
        for text in texts:
            self.reads.update(DOLLAR.findall(text))
            for expression in BRACES.findall(text):
                self.nested(expression.split("!")[0].split(":")[0])
        if call in RUN_MAGIC and texts:
            self.dynamic.add("%" + texts[0])
            for code in texts[1:]:
                self.nested(code)  # `%time f(x)` and `%%time`: the text is code, perhaps

    def nested(self, source: str, call: str | None = None) -> None:
        try:
            inner = names(source)
        except (SyntaxError, ValueError, RecursionError):
            self.dynamic.update({call} if call else ())
            return
        self.reads |= inner.reads
        self.binds |= inner.binds
        self.dynamic |= inner.dynamic


def _texts(args: list[ast.expr]) -> list[str]:
    return [arg.value for arg in args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
