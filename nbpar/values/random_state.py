"""The random streams of random, numpy and torch as raw bytes, so that a cell goes on with the notebook's own."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MERSENNE = struct.Struct("<625IBd")  # key and position; whether a Gaussian is left over; which


@dataclass(frozen=True)
class Stream:
    """One module's global stream."""

    get: Callable[[], bytes]
    put: Callable[[bytes], None]


def get_python() -> bytes:
    _, key, gauss = random.getstate()
    return MERSENNE.pack(*key, gauss is not None, gauss or 0.0)


def put_python(state: bytes) -> None:
    *key, has_gauss, gauss = MERSENNE.unpack(state)
    random.setstate((3, tuple(key), gauss if has_gauss else None))


def get_numpy() -> bytes:
    state: Any = sys.modules["numpy.random"].get_state(legacy=False)
    inner = state["state"]
    if state["bit_generator"] != "MT19937":
        raise TypeError(f"numpy's global stream is a {state['bit_generator']}, not MT19937; numpy.random.seed() puts it back")
    return inner["key"].tobytes() + struct.pack("<IBd", inner["pos"], state["has_gauss"], state["gauss"])


def put_numpy(state: bytes) -> None:
    key = sys.modules["numpy"].frombuffer(state[:2496], "uint32")
    position, has_gauss, gauss = struct.unpack("<IBd", state[2496:])
    sys.modules["numpy.random"].set_state(("MT19937", key, position, has_gauss, gauss))


def get_torch() -> bytes:
    return sys.modules["torch"].default_generator.get_state().numpy().tobytes()


def put_torch(state: bytes) -> None:
    torch = sys.modules["torch"]
    torch.default_generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def get_cuda() -> bytes:
    return sys.modules["torch"].cuda.get_rng_state().numpy().tobytes()


def put_cuda(state: bytes) -> None:
    torch = sys.modules["torch"]
    torch.cuda.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


STREAMS: Mapping[str, Stream] = {
    "random": Stream(get_python, put_python),
    "numpy": Stream(get_numpy, put_numpy),
    "torch": Stream(get_torch, put_torch),
    "cuda": Stream(get_cuda, put_cuda),
}


def present(name: str) -> bool:
    """Whether this process has the stream. No module is imported for its sake."""
    if name == "cuda":
        return "torch.cuda" in sys.modules and sys.modules["torch.cuda"].is_initialized()
    if name == "numpy" and "numpy" in sys.modules:
        __import__("numpy.random")  # numpy loads it late
    module = sys.modules.get(name)
    return not getattr(getattr(module, "__spec__", None), "_initializing", False) and module is not None


class RandomStates:
    """This process's global streams."""

    def capture(self) -> dict[str, bytes]:
        """The state of every stream that this process has."""
        return {name: stream.get() for name, stream in STREAMS.items() if present(name)}

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Continues these streams here. One whose module is not imported here, or whose GPU is not in use, is imported."""
        for name, state in states.items():
            if not present(name):
                if name == "cuda" and not _cuda():
                    continue
                __import__({"cuda": "torch", "numpy": "numpy.random"}.get(name, name))
            STREAMS[name].put(state)

    def changed_since(self, states: Mapping[str, bytes]) -> dict[str, bytes]:
        """The streams that have moved on from these, with their states now."""
        return {name: state for name, state in self.capture().items() if states.get(name) != state}


def _cuda() -> bool:
    __import__("torch")
    return bool(sys.modules["torch"].cuda.is_available())
