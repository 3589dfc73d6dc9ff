from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook import Notebook


@pytest.fixture
def fresh() -> Iterator[Notebook]:
    """A notebook of one's own, to be ruined."""
    with Notebook() as notebook:
        notebook.run("%parallel start -n 2")
        yield notebook
