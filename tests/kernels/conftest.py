from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nbpar.__main__ import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix in which Jupyter finds kernelspecs, and where nothing else is."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    return tmp_path


@pytest.fixture
def install(place: Path) -> Callable[..., Path]:
    """`python -m nbpar kernel install …` into that prefix; the kernelspec's file."""

    def installed(*words: str, name: str) -> Path:
        assert main(["kernel", "install", "--prefix", str(place), "--name", name, *words]) == 0
        return place / "share" / "jupyter" / "kernels" / name / "kernel.json"

    return installed
