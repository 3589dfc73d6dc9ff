from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.hosts.rig import Hosts
from tests.notebook import Notebook


@pytest.fixture(scope="package")
def hosts() -> Iterator[Hosts]:
    """Two hosts, and one for the kernel. Where they cannot be made the tests are skipped, but never in CI."""
    rig = Hosts()
    try:
        rig.__enter__()
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"hosts cannot be made of namespaces here: {error}")
    try:
        yield rig
    finally:
        rig.__exit__()


@pytest.fixture(scope="package")
def spread(hosts: Hosts) -> Iterator[Notebook]:
    """A notebook on a host of its own, with two ranks on each of two others.

    MPI would find out that it is one machine after all, and use its memory: it is told to use the wire.
    """
    with Notebook(within=hosts.enter("k"), env=dict(os.environ, UCX_TLS="self,tcp")) as notebook:
        notebook.run(start(hosts))
        yield notebook


def start(hosts: Hosts, where: str = "a:2,b:2") -> str:
    """The line that starts ranks on hosts."""
    return f'%parallel start --hosts {where} --mpi-args "-launcher-exec {hosts.ssh}"'
