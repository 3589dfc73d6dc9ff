"""One cell under `%%parallel model`: which modules are placed where and when, and what is compared at its end."""

from __future__ import annotations

import hashlib
import pickle
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from nbpar.errors import CollectiveMismatch, PeerFailed, Unsupported
from nbpar.parallel.files import new_notes, written_once
from nbpar.parallel.report import Left
from nbpar.ranks.machine import free_memory
from nbpar.values.staying import Stay

from .build import SMALL, Build
from .channel import Channel, agree
from .clock import seconds
from .cores import Cores
from .dispatch import Dispatch
from .early import Early
from .home import is_split, loose, owner
from .keep import large, together
from .layers import Layer, chain, divide, refuse_nested, roots, sizes, unfit
from .micro import Micro
from .optimisers import Optimisers
from .patches import patched
from .place import Stuck, place, state_on
from .reach import modules, optimisers, reach
from .special import adopt
from .units import NOT_ONE_STEP, Units
from .whole import make_whole, whole_beside


@dataclass(frozen=True)
class Options:
    """How a cell is split. micro: 0 for auto. place: rank by module name. keep: names that stay on their ranks. out: names that
    do not. build: bytes of parameters that the cell makes before it drops those of other ranks."""

    micro: int = 1
    place: Mapping[str, int] = field(default_factory=dict)
    balance: str = "params"
    keep: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    units: bool = True
    build: int = SMALL


class Session:
    def __init__(self, channel: Channel, options: Options, namespace: dict[str, Any], say: Callable[[str], None]) -> None:
        self.channel, self.options, self.namespace, self.say = channel, options, namespace, say
        channel.rules = self.dispatch = Dispatch()
        self.dispatch.early = self.early = Early()
        channel.on_move, channel.on_forget = self.early.moved, self._forget
        self.units = Units(options.units, self.dispatch)
        self.placed: dict[str, int] = {}
        self.failure: BaseException | None = None
        self._asked: set[int] = set()  # ids of models that were considered; they are kept below
        self._models: list[nn.Module] = []
        self._thread = threading.get_ident()
        self.cores = Cores(channel, self.early.in_turn)
        channel.on_send = self.cores.sent
        self.micro = Micro(options.micro, self.dispatch, say, self.cores)
        self._roots: set[int] = set()
        self._in_pieces = False
        self.build = Build(options.build)
        self._given = dict(namespace)
        self._stayed = [thing for thing in reach(namespace) if is_split(thing)]  # from an earlier cell

    @contextmanager
    def running(self) -> Iterator[None]:
        """The cell runs inside this."""
        if self.options.balance != "time":  # else when a model is called: its layers are timed in its first call
            self.place_all()
        notes = self.channel.decide(new_notes() if self.channel.place == 0 else "")
        with written_once(self.channel.place, notes), patched(self._call, self.say), Optimisers(self.dispatch):
            with self.build.watching(), self.cores.returned(), self.dispatch:
                yield

    def place_all(self, called: nn.Module | None = None, args: Any = (), kwargs: Any = None) -> None:
        """Divide the models that the namespace leads to, and the one that is called, over the ranks as one chain."""
        with torch._C.DisableTorchFunction():
            named = modules(self.namespace)
            if called is not None:
                known = {id(part) for _, model in named for part in model.modules()}
                if id(called) not in known:
                    named.append((type(called).__name__, called))
            fresh = {name: model for name, model in roots(named).items() if self._fresh(name, model)}
            if fresh:
                layers = chain(fresh)
                self._divide(fresh, layers, self._costs(layers, called, args, kwargs))

    def place_before(self, module: nn.Module | None, args: Any, kwargs: Any) -> None:
        """Place what is about to be called, if it is new. None: a function, which may call anything."""
        if module is None or (id(module) not in self._asked and next(module.parameters(), None) is not None):
            self.place_all(module, args, kwargs)

    def _costs(self, layers: Sequence[Layer], called: nn.Module | None, args: Any, kwargs: Any) -> list[float]:
        """What the ranks are to have alike. Layers that the call does not come by count by their size."""
        costs = sizes(layers)
        if self.options.balance != "time":
            return costs
        parts = set(called.modules()) if called is not None else set()
        inside = [at for at, layer in enumerate(layers) if layer.module in parts]
        whole = called is not None and inside and not self.build.dropping
        timed = seconds([layers[at] for at in inside], called, args, kwargs) if called is not None and whole else None
        timed = self.channel.decide(timed)
        if timed is None:
            self.say("--balance time: no call to measure before the layers are placed; they are divided by their size")
            return costs
        scale = sum(timed) / max(sum(costs[at] for at in inside), 1.0)
        costs = [cost * scale for cost in costs]
        for at, one in zip(inside, timed, strict=True):
            costs[at] = one
        return costs

    def _fresh(self, name: str, model: nn.Module) -> bool:
        if id(model) in self._asked:
            return False
        for part in model.modules():
            self._asked.add(id(part))
        self._models.append(model)
        if any(owner(value) is not None and not loose(value) for value in model.parameters()):
            self._as_placed(name, model)
            return False
        why = unfit(model)
        if why:
            make_whole({name: model})
            self.say(f"{name} is whole on every rank: {why}")
        return why is None

    def _as_placed(self, name: str, model: nn.Module) -> None:
        """A model that stayed on the ranks is where it was."""
        if self.options.place:
            self.say(f"{name} stays where an earlier cell has placed it; --place is for models that are whole")
        self._roots.add(id(model))
        for layer in chain({name: model}):
            self.placed.update((layer.name, rank) for value in layer.tensors() if (rank := owner(value)) is not None)

    def kept(self) -> dict[str, Stay]:
        """The variables that stay on the ranks at the end of the cell. Asked by all ranks alike."""
        if self.build.dropping:
            self.place_all()  # of what was made and not called
        return self._staying()

    def _staying(self) -> dict[str, Stay]:
        asked = dict.fromkeys(self.options.keep, Stay.reason)
        link = self.channel
        free = link.decide(free_memory() if link.place == 0 else 0)
        heavy = large(self.namespace, self._given, self.options.out, link.size + 1, free)
        return together(self.namespace, {**heavy, **asked}, self._stayed)

    @contextmanager
    def at_end(self) -> Iterator[Left | None]:
        """See `Report`. None in a backward pass."""
        with torch._C.DisableTorchFunction():
            if in_backward():
                yield None
                return
            kept = None if self.channel.in_mesh else self._staying()
            with self.build.undone(), whole_beside(self.namespace, kept or ()) as others:
                yield None if others is None else Left(others, kept)

    def _divide(self, models: dict[str, nn.Module], layers: Sequence[Layer], costs: Sequence[float]) -> None:
        for layer in layers:
            for value in layer.tensors():
                adopt(value)
        ranks = divide(layers, costs, self.channel.size, self.options.place)
        try:
            self.units.settle(place(layers, ranks))
        except Stuck as why:
            self.say(f"{', '.join(models)} is whole on every rank: {why}")
            return
        self._roots.update(map(id, models.values()))
        self.placed.update({layer.name: rank for layer, rank in zip(layers, ranks, strict=True)})
        for optimiser in optimisers(self.namespace):
            state_on(optimiser)

    def _call(self, original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What `module(*args, **kwargs)` does in the cell."""
        if self.channel.in_step:
            return self.dispatch.late.call(original, module, args, kwargs)
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if transformed or isinstance(module, torch.jit.ScriptModule):
            return original(module, *args, **kwargs)
        if not self._listening():
            self._refuse_thread(module)
            return original(module, *args, **kwargs)
        self.place_before(module, args, kwargs)
        if id(module) in self._roots and not self._in_pieces:
            self._in_pieces = True
            try:
                return self.micro.call(module, args, kwargs, lambda *a, **k: self._model(original, module, a, k))
            finally:
                self._in_pieces = False
        return self._one(original, module, args, kwargs)

    def _forget(self) -> None:
        self.early.forget()
        self.cores.end()

    def _model(self, original: Any, model: nn.Module, args: Any, kwargs: Any) -> Any:
        self.early.begin(model)
        return self._one(original, model, args, kwargs)

    def _one(self, original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            self.channel.in_step = True
            try:
                result = self.units.call(module, args, kwargs, original)
            finally:
                self.channel.in_step = False
        if result is not NOT_ONE_STEP:
            return result
        refuse_nested(module, kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None))
        return original(module, *args, **kwargs)

    @staticmethod
    def _listening() -> bool:
        """Whether the mode is on in this thread: it is off inside a backward pass and in threads of the cell."""
        depth = torch._C._len_torch_function_stack()
        return any(isinstance(torch._C._get_function_stack_at(i), Dispatch) for i in range(depth))

    def _refuse_thread(self, module: nn.Module) -> None:
        if threading.get_ident() != self._thread and any(owner(value) is not None for value in module.parameters()):
            self.failure = Unsupported(f"{type(module).__name__} called in another thread of the cell; call it in the cell itself")
            raise self.failure


@dataclass(frozen=True)
class End:
    """How the cell ended on one rank."""

    error: tuple[str, str] | None  # class and text
    refused: bool
    streams: str
    transfers: str


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class Met(Protocol):
    """What a meeting looks at. failure: one that the cell itself may not have seen."""

    channel: Channel
    failure: BaseException | None


def meet(session: Met, error: BaseException | None) -> None:
    """The ranks say how the cell ended. Returns where it ended alike: without an error, or with the same one.

    Otherwise nothing that the cell did can be trusted. An error of some ranks is raised on the others too.
    """
    failure = error or session.failure
    told = None if failure is None else (type(failure).__name__, str(failure))
    link = session.channel
    ends = link.gather(End(told, isinstance(failure, Unsupported), random_digest(), link.log))
    link.flush()
    if agree(ends) and session.failure is None:
        return
    for end in ends:
        if end.error and error is None:
            name, text = end.error
            raise Unsupported(text) if end.refused else PeerFailed(f"rank {ends.index(end)} failed with {name}: {text}")
    if error is not None:
        raise error
    what = "transfers" if agree([end.streams for end in ends]) else "random states"
    raise CollectiveMismatch(
        f"the ranks' {what} differ at the end of the cell, so its results are not trusted and not written back; "
        "please report the cell. %%parallel data may run it"
    )


def random_digest() -> str:
    """A digest of all random states: Python's, numpy's, torch's."""
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes()]
    return hashlib.blake2b(pickle.dumps(states), digest_size=8).hexdigest()
