from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbpar.__main__ import main
from tests.browser.lab import Page, server


@pytest.fixture(scope="session")
def jupyter(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address, folder of notebooks) of a server for all tests."""
    root, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    assert main(["kernel", "install", "-n", "2", "--prefix", str(home)]) == 0
    with server(root, home) as base:
        yield base, root


@pytest.fixture(scope="module")
def page(browser: Any, jupyter: tuple[str, Path]) -> Iterator[Page]:
    """A page for a module's tests, one after the other."""
    base, root = jupyter
    context = browser.new_context(viewport={"width": 1280, "height": 1400})
    made = Page(context.new_page(), base, root)
    made.watch()
    try:
        yield made
    finally:
        context.close()
