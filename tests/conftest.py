from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook import Notebook


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with two ranks, shared by a module's tests."""
    with Notebook() as opened:
        opened.run("%parallel start -n 2")
        yield opened
