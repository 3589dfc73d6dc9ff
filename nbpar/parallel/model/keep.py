"""What stays on the ranks after a cell: what was asked for, and what cannot be parted from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nbpar.values.names import RESULT, persons
from nbpar.values.staying import Stay

from .home import is_split
from .reach import reach

LIMIT = 1 << 30  # bytes; more than this comes to the notebook only if it is asked for


def together(namespace: Mapping[str, Any], asked: Mapping[str, str], tensors: Iterable[Tensor] = ()) -> dict[str, Stay]:
    """The variables that stay: those asked for, with their reasons, and those that hold parameters of theirs or one of `tensors`.

    A model and its optimiser are not parted: the copy that came to the notebook would train another model.
    """
    values = variables(namespace)
    leads = {name: inseparable(value) for name, value in values.items()}
    found = {name: reason for name, reason in asked.items() if name in leads}
    holds = {id(value): "" for value in tensors}
    holds.update((key, name) for name in found for key in leads[name])
    more = True
    while more:
        more = False
        for name, keys in leads.items():
            if name not in found and (common := keys & holds.keys()):
                owner = next((holds[key] for key in common if holds[key]), "")
                found[name] = f"It holds parameters of {owner}." if owner else "It holds parameters of what stayed before."
                holds.update((key, name) for key in keys if not holds.get(key))
                more = True
    return {name: Stay(reason, size_of(values[name])) for name, reason in found.items()}


def size_of(value: Any) -> int:
    """Bytes of the tensors that a value leads to, the same on all ranks."""
    tensors = [
        thing for thing in reach({"value": value}, follow=False) if isinstance(thing, Tensor) and not nn.parameter.is_lazy(thing)
    ]
    return sum(thing.numel() * thing.element_size() for thing in tensors)


def inseparable(value: Any) -> set[int]:
    """Ids of the modules, parameters and optimisers that a value leads to, and of tensors that only one rank holds."""
    return {
        id(thing)
        for thing in reach({"value": value}, follow=False)
        if isinstance(thing, (nn.Module, nn.Parameter, Optimizer)) or is_split(thing)
    }


def variables(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The person's variables, and the last expression's value."""
    found = persons(namespace)
    return {**found, RESULT: namespace[RESULT]} if RESULT in namespace else found


def large(namespace: Mapping[str, Any], known: Mapping[str, Any], out: Iterable[str], copies: int, free: int) -> dict[str, str]:
    """Variables with models made in the cell that are too large to be brought together, with the reason.

    known: variables from before the cell; out: those asked for; copies: how many would be made; free: bytes on their host.
    """
    new = {name: value for name, value in variables(namespace).items() if value is not known.get(name) and name not in out}
    split: dict[int, int] = {}
    for thing in reach(new, follow=False):
        if is_split(thing):
            storage = thing.untyped_storage()
            split[storage._cdata] = storage.nbytes()
    size = sum(split.values())
    if size <= LIMIT and size * copies <= free / 2:
        return {}
    why = f"Whole, it would take {size / 2**20:,.0f} MiB in each of {copies} processes; --out NAME brings it all the same."
    return {name: why for name, value in new.items() if _holds(value, nn.Module)}


def _holds(value: Any, kind: type) -> bool:
    return any(isinstance(thing, kind) for thing in reach({"value": value}, follow=False))


def refusal(what: str, namespace: Mapping[str, Any]) -> str:
    """Why `what` cannot use values that stayed on different ranks; empty if there are none."""
    for name, value in persons(namespace).items():
        if any(is_split(thing) for thing in reach({name: value}, follow=False)):
            return (
                f"{name}'s layers are on different ranks, as %%parallel model left them, and {what} needs them whole. "
                f"Bring it to the notebook, {name} = {name}.gather(), or use %%parallel model without --check."
            )
    return ""
