"""The store by which torch's own backends find each other, its waits polls that can be ended as all others here."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from mpi4py import MPI

from .state import state
from .waiting import wait_until

stores: Any = dist


class PatientStore(stores.Store):
    """The keys of another store. C++ calls these methods too, some with the time after which a wait has failed."""

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store

    def wait(self, keys: Sequence[str], timeout: timedelta = timedelta(minutes=30)) -> None:
        """Raises PeerFailed after `abort`, TimeoutError."""
        names = list(keys)
        wait_until(lambda: self._store.check(names), timeout=timeout.total_seconds())

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._store.get(key)

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value)

    def add(self, key: str, value: int) -> int:
        return self._store.add(key, value)

    def check(self, keys: Sequence[str]) -> bool:
        return self._store.check(list(keys))

    def compare_set(self, key: str, expected_value: Any, desired_value: Any) -> bytes:
        return self._store.compare_set(key, expected_value, desired_value)

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(key)

    def num_keys(self) -> int:
        return self._store.num_keys()

    deleteKey, getNumKeys = delete_key, num_keys  # what C++ calls them


def meeting_point(world: MPI.Intracomm) -> PatientStore:
    """A file on one host, else a port of rank 0's. Collective over `world`."""
    if not state.spread:
        place = f"{state.folder or tempfile.mkdtemp(prefix='nbpar-')}/meet-{secrets.token_hex(4)}" if world.rank == 0 else ""
        return PatientStore(stores.FileStore(world.bcast(place), world.size))
    if world.rank == 0:
        store = stores.TCPStore(state.address, 0, world.size, is_master=True, wait_for_workers=False)
        world.bcast((state.address, store.port))
        return PatientStore(store)
    address, port = world.bcast(None)
    return PatientStore(stores.TCPStore(address, port, world.size, wait_for_workers=False))
