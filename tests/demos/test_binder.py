"""binder/: what mybinder.org's builder reads is there, and what it builds works in a small place."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib.metadata import version
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.browser.lab import TOKEN, free_port, wait
from tests.demos.place import Place
from tests.ranks import ROOT

BINDER = ROOT / "binder"


def test_the_builder_finds_its_files() -> None:
    read = {"requirements.txt", "runtime.txt", "postBuild", "start"}
    assert {path.name for path in BINDER.iterdir()} == {*read, "jupyter_server_config.json"}
    python = (BINDER / "runtime.txt").read_text().strip().removeprefix("python-")
    required = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert required and SpecifierSet(required[1]).contains(python)
    for name in ("postBuild", "start"):
        assert os.access(BINDER / name, os.X_OK)
        subprocess.run(["bash", "-n", BINDER / name], check=True)
    assert (BINDER / "start").read_text().splitlines()[-1] == 'exec "$@"'


def test_requirements_are_what_the_tests_have() -> None:
    lines = [line for line in (BINDER / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    options = [line for line in lines if line.startswith("-")]
    assert (BINDER / options.pop().removeprefix("-c ")).resolve() == ROOT / "constraints.txt"
    assert options == ["--extra-index-url=https://download.pytorch.org/whl/cpu"]
    local, *others = [line for line in lines if not line.startswith("-")]
    assert local == ".[demo]"
    constraints = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "#"]
    for name in (*others, "torch", "mpich", "mpi4py", "anywidget"):
        pinned = next(one for one in constraints if one.name.lower() == name)
        assert pinned.specifier.contains(version(name).partition("+")[0])


def test_the_place_is_small(place: Place) -> None:
    said = json.loads(
        place.run(
            "python",
            "-c",
            "import json, os, nbpar; s = os.statvfs('/dev/shm');"
            "print(json.dumps([os.geteuid(), s.f_blocks * s.f_frsize, nbpar.__file__]))",
        )
    )
    assert said[0] != 0
    assert said[2].startswith(str(place.folder)), "nbpar comes from its wheel"
    if place.confined:
        assert said[1] == 64 << 20


def test_more_memory_than_there_is_cannot_be_had(place: Place) -> None:
    if not place.limited:
        pytest.skip("control groups cannot be made here")
    with place.running("python", "-c", "x = bytearray(3 << 30)") as (process, log):
        assert process.wait(60) in (-9, 137), log.read_text()


@pytest.mark.timeout(120)
def test_lab_opens_with_the_list_of_notebooks(place: Place, browser: Any) -> None:
    port = free_port()
    base, options = f"http://127.0.0.1:{port}", ["--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    with place.running("python", "-m", "jupyterlab", *options, f"--IdentityProvider.token={TOKEN}") as (server, log):
        wait(base, server, log)
        page = browser.new_page()
        try:
            page.goto(f"{base}/?token={TOKEN}")
            page.locator(".jp-Notebook h1", has_text="nbpar: demo notebooks").wait_for(timeout=60_000)
            page.get_by_text("Python 3 (ipykernel)").first.wait_for()
            assert page.url.partition("?")[0] == f"{base}/lab/tree/demo_notebooks/index.ipynb"
        finally:
            page.close()
