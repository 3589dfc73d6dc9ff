from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demos.place import Place, build


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """For all notebooks. Not in pytest's folder, which only its user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="nbpar-place-"))
    folder.chmod(0o755)
    try:
        yield build(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
