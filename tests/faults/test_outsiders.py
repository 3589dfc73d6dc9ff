"""Who may connect: nobody else. Outsiders get no pickle loaded and disturb neither kernel nor ranks."""

from __future__ import annotations

import os
import pickle
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from tests.faults.common import works
from tests.notebook import Notebook


class Trap:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def over_tcp() -> Iterator[Notebook]:
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2 --interface 127.0.0.1")
        yield notebook


def environment(notebook: Notebook) -> dict[str, str]:
    """What a rank was given."""
    return psutil.Process(notebook.value("nbpar.world().pids")[0]).environ()


def ports(notebook: Notebook) -> list[int]:
    return [int(port) for port in environment(notebook)["NBPAR_ADDRESS"].split()[1:]]


def test_over_tcp_cells_run_as_over_unix_sockets(over_tcp: Notebook) -> None:
    works(over_tcp)


def test_unix_sockets_lie_in_a_folder_of_ones_own(notebook: Notebook) -> None:
    folder = Path(environment(notebook)["NBPAR_ADDRESS"].removeprefix("ipc://"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.getuid()
    if os.getuid() == 0:
        code = f"import os, socket; os.setuid(65534); socket.socket(socket.AF_UNIX).connect('{folder}/cells')"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
        assert "PermissionError" in told


def test_keys_are_on_no_command_line_and_not_in_the_notebook(over_tcp: Notebook) -> None:
    key = environment(over_tcp)["NBPAR_KEY"]
    kernel = psutil.Process(over_tcp.manager.provisioner.pid)  # type: ignore[union-attr,attr-defined]
    for process in [kernel, *kernel.children(recursive=True)]:
        assert key not in " ".join(process.cmdline())
    assert key not in over_tcp.run("%parallel status").stdout


@pytest.mark.parametrize("key", ["none", "wrong", "of its own"])
def test_without_the_key_no_message_arrives(over_tcp: Notebook, tmp_path: Path, key: str) -> None:
    trap = str(tmp_path / "loaded")
    with zmq.Context() as context:
        for port in ports(over_tcp):
            with context.socket(zmq.DEALER) as outsider:
                outsider.setsockopt(zmq.LINGER, 200)
                outsider.setsockopt(zmq.IDENTITY, b"main-0")
                if key != "none":
                    public, outsider.curve_secretkey = zmq.curve_keypair()
                    outsider.curve_publickey = public
                    outsider.curve_serverkey = zmq.curve_keypair()[0] if key == "wrong" else public
                outsider.connect(f"tcp://127.0.0.1:{port}")
                outsider.send_multipart([b"reply", pickle.dumps(Trap(trap))])
    works(over_tcp)
    assert not os.path.exists(trap)


def test_garbage_and_replayed_bytes_are_dropped(over_tcp: Notebook) -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE".ljust(53, b"\0")
    for port in ports(over_tcp):
        for data in (os.urandom(5000), b"GET / HTTP/1.0\r\n\r\n", greeting, greeting + b"\x04\xc8\x05HELLO" + os.urandom(194)):
            for _ in range(2):
                with socket.create_connection(("127.0.0.1", port)) as outsider:
                    outsider.sendall(data)
    works(over_tcp)


def test_ten_thousand_half_open_connections(over_tcp: Notebook) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(10_000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, many + 200), hard))
    held, doors = [], ports(over_tcp)
    try:
        for number in range(many):
            outsider = socket.socket()
            outsider.setblocking(False)
            outsider.connect_ex(("127.0.0.1", doors[number % 2]))
            held.append(outsider)
            if number % 2000 == 0:
                works(over_tcp)
        works(over_tcp)
    finally:
        for outsider in held:
            outsider.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    works(over_tcp)
