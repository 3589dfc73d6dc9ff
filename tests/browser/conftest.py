from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbpar.__main__ import main
from tests.browser.lab import FLAGS, Page, chromium, server


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless. Where there is none the tests are skipped, in CI they fail."""
    path = chromium()
    if path is None:
        reason = "no Chromium on this machine: `apt-get install chromium`, or `brew install chromium`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


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
