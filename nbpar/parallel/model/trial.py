"""A run of a model that leaves no trace: what it changes is put back, and is a reason not to call the model in pieces."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbpar.parallel.data.draws import Streams
from nbpar.parallel.data.state import CONTAINERS, OWN, Attributes, put_entries, same_items, shallow

from .unit import HOOKS


class Whole(Exception):
    """Why a model is called whole, in words."""


def known_to_mix(module: nn.Module) -> None:
    """Raises Whole where no trial is needed to see that pieces differ."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise Whole(f"{name or 'it'} ({type(part).__name__}) uses statistics of the whole batch")
        if any(getattr(part, hooks) for hooks in HOOKS):
            raise Whole(f"{name or 'it'} ({type(part).__name__}) has hooks, which see the whole batch")


class Before:
    """A model as it is before a call, to be put back. Of its weights and buffers it is seen only whether they are written to."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self._attributes, self._streams = Attributes(parts), Streams.now()
        held = chain.from_iterable((*part._parameters.values(), *part._buffers.values()) for part in parts)
        self._versions = [(value, value._version) for value in held if value is not None and not value.is_inference()]

    def put_back(self) -> bool:
        """Whether all is as it was."""
        self._streams.put_back()
        self._attributes.put_back()
        return all(value._version == version for value, version in self._versions)


@contextmanager
def nothing_is_zero(module: nn.Module) -> Iterator[None]:
    """Parameters that are zero would hide that rows are mixed: for the trial they are not."""
    zero = [value for value in module.parameters() if not value.any()]
    with torch.no_grad():
        for i, value in enumerate(zero):
            value.fill_(0.1 / (i + 1))
    try:
        yield
    finally:
        with torch.no_grad():
            for value in zero:
                value.zero_()


@contextmanager
def no_trace(module: nn.Module, given: Iterable[Tensor]) -> Iterator[None]:
    """Raises Whole if the model, a tensor given to it or a random stream was changed; puts everything back in any case."""
    attributes = [(part, {k: shallow(v) for k, v in vars(part).items() if k not in OWN}) for part in module.modules()]
    entries = [(own, dict(own)) for part in module.modules() for own in (part._parameters, part._buffers)]
    values = [(value, value.detach().clone(), "its weights or buffers") for value in (*module.parameters(), *module.buffers())]
    values += [(value, value.detach().clone(), "its arguments") for value in given]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    why = ""
    try:
        yield
    finally:
        for part, before in attributes:
            if _differs(part, before):
                why = f"{type(part).__name__} changes its attributes"
                for name in [name for name in vars(part) if name not in OWN]:
                    del vars(part)[name]
                vars(part).update(before)
        for own, before in entries:
            if own.keys() != before.keys() or any(own[name] is not value for name, value in before.items()):
                why = why or "it replaces its weights or buffers"
                put_entries(own, before)
        for value, copy, what in values:
            if not torch.equal(value, copy):
                why = why or f"it changes {what}"
                with torch.no_grad():
                    value.copy_(copy)
        if not torch.equal(torch.get_rng_state(), states[0]) or random.getstate() != states[1]:
            why = why or _draws(module)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
    if why:
        raise Whole(why)


def _differs(part: nn.Module, before: dict[str, object]) -> bool:
    now = {name: value for name, value in vars(part).items() if name not in OWN}
    return now.keys() != before.keys() or not all(_same(now[name], value) for name, value in before.items())


def _same(now: object, before: object) -> bool:
    """A container was copied: it is the same if it holds the same."""
    return same_items(now, before) if isinstance(before, CONTAINERS) and type(now) is type(before) else now is before


def _draws(module: nn.Module) -> str:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p:
            return f"{name} (Dropout) draws for the whole batch at once"
    return "it draws random numbers for the whole batch at once"
