"""Whether a module's Python may be left out on the ranks that do not hold it: what its forward reads and changes.

A forward that reads or calls something else than modules, functions and constants could have an effect that only the
owner sees (a list that it appends to, a file, a counter). Such a module runs operation by operation on every rank.
"""

from __future__ import annotations

import builtins
import dis
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

Source = tuple[Any, str]  # a dict of globals or a cell, and a name in it

CONSTANTS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, torch.memory_format)
_MODULES = {"torch", "math", "cmath", "numpy", "operator", "functools", "itertools", "typing", "einops", "random"}
# fmt: off
_BUILTINS = {
    "abs", "all", "any", "bool", "bytes", "classmethod", "complex", "dict", "divmod", "enumerate", "filter", "float",
    "frozenset", "getattr", "hasattr", "int", "isinstance", "issubclass", "len", "list", "map", "max", "min",
    "object", "pow", "property", "range", "repr", "reversed", "round", "set", "slice", "sorted", "staticmethod",
    "str", "sum", "super", "tuple", "type", "zip",
}
# fmt: on
_MODULE_FIELDS = frozenset(nn.Module().__dict__)
_NO_CONSTANTS = _MODULE_FIELDS - {"training"}
_STORES = {"STORE_ATTR", "DELETE_ATTR"}
_REPLACES = {"register_parameter", "register_buffer", "_parameters", "_buffers", "_modules", "add_module"}
_WRITES = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_NAME"}


class Impure(Exception):
    """Why a forward has to run on every rank, in words."""


@dataclass
class Read:
    """What a module's forward depends on outside of it. functions: and classes; then: as they were when they were read."""

    constants: list[Source]
    functions: list[Source]

    def __post_init__(self) -> None:
        self.then = now(self.functions)

    def unchanged(self) -> bool:
        return not self.functions or all(map(is_, now(self.functions), self.then))


def read(module: nn.Module) -> Read:
    """Raises Impure if a forward depends on anything else than constants and functions."""
    reader = _Reader(module)
    for part in module.modules():
        if "forward" in part.__dict__:
            raise Impure("its forward was replaced")
        kind = type(part)
        if not kind.__module__.startswith("torch.nn."):
            reader.function(kind.forward, kind)
    return Read(reader.found, reader.called)


class _Reader:
    """Reads functions' code: what they load from outside and what they store."""

    def __init__(self, module: nn.Module) -> None:
        self.found: list[Source] = []
        self.called: list[Source] = []
        self.seen: set[int] = set()
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self.tensors = {name.rpartition(".")[2] for name, _ in tensors}

    def function(self, function: Any, owner: type | None) -> None:
        """owner: the class whose methods and properties it may call."""
        function = inspect.unwrap(function) if isinstance(function, FunctionType) else function
        if isinstance(function, MethodType):
            function = function.__func__
        if not isinstance(function, FunctionType) or id(function) in self.seen:
            return
        self.seen.add(id(function))
        if function.__module__ and function.__module__.split(".")[0] in _MODULES:
            return
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.value(default, None)
        for cell in function.__closure__ or ():
            self.value(_content(cell), (cell, "cell_contents"))
        for code in codes(function.__code__):
            for step in dis.get_instructions(code):
                self.step(step.opname, step.argval, function.__globals__)
            for name in code.co_names if owner else ():
                member = inspect.getattr_static(owner, name, None)
                member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                self.function(member, owner)

    def step(self, operation: str, name: Any, names: dict[str, Any]) -> None:
        if operation in _WRITES or (operation in _STORES and name in self.tensors) or name in _REPLACES:
            raise Impure(f"it changes {name}")
        if operation not in ("LOAD_GLOBAL", "LOAD_NAME"):
            return
        if name in names:
            self.value(names[name], (names, name))
        elif name not in _BUILTINS and not _is_error(getattr(builtins, name, None)):
            raise Impure(f"it uses {name}")

    def value(self, value: Any, source: Source | None) -> None:
        what = source[1] if source else "a default"
        if source is not None and callable(value):
            self.called.append(source)
        if isinstance(value, (*CONSTANTS, tuple)):
            for item in value if isinstance(value, tuple) else ():
                self.value(item, None)
            if source is not None:
                self.found.append(source)
        elif isinstance(value, nn.Module):
            raise Impure(f"it uses {what}, a module that is not inside it")
        elif isinstance(value, ModuleType):
            if value.__name__.split(".")[0] not in _MODULES:
                raise Impure(f"it uses the module {value.__name__}")
        elif isinstance(value, (FunctionType, MethodType)):
            self.function(value, None)
        elif isinstance(value, type):
            known = value.__module__.split(".")[0] in {"builtins", *_MODULES}
            if not (known or _is_error(value) or issubclass(value, nn.Module)):
                raise Impure(f"it uses the class {value.__name__}")
        elif not (isinstance(value, BuiltinFunctionType) or _of_torch(value)):
            raise Impure(f"it uses {what}, a {type(value).__name__}")


def check_attributes(module: nn.Module) -> None:
    """Raises Impure if a module keeps something that its forward could change without being seen."""
    for part in module.modules():
        if type(part).__module__.startswith("torch.nn."):
            continue
        for name, value in part.__dict__.items():
            if name in _MODULE_FIELDS:
                continue
            items = value.values() if isinstance(value, dict) else value
            for item in items if isinstance(value, (list, tuple, dict, set)) else (value,):
                if not isinstance(item, (*CONSTANTS, FunctionType, BuiltinFunctionType, nn.Module, type)):
                    raise Impure(f"{type(part).__name__}.{name} is a {type(item).__name__}")


def constants_in(part: nn.Module) -> Iterator[Any]:
    """A module's attributes that are constants, or lists and dicts of constants."""
    attributes = part.__dict__
    for name in [name for name in attributes if name not in _NO_CONSTANTS]:
        value = attributes[name]
        if isinstance(value, CONSTANTS):
            yield name, value
        elif isinstance(value, (list, tuple, dict)):
            items = (*value, *value.values()) if isinstance(value, dict) else tuple(value)
            if all(isinstance(item, CONSTANTS) for item in items):
                yield name, items


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _of_torch(value: Any) -> bool:
    return callable(value) and type(value).__module__.split(".")[0] in ("torch", "builtins", "numpy")


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def now(sources: list[Source]) -> tuple[Any, ...]:
    """Their present values."""
    return tuple(names.get(name) if isinstance(names, dict) else _content(names) for names, name in sources)


def mentions(code: CodeType, words: frozenset[str]) -> bool:
    """Whether code names one of these words, as a name, an attribute or a keyword."""
    return any(words & _words(inner) for inner in codes(code))


def _words(code: CodeType) -> set[str]:
    keywords = {word for constant in code.co_consts if isinstance(constant, tuple) for word in constant if isinstance(word, str)}
    return {*code.co_names, *keywords}
