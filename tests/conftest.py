from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.lab import FLAGS, chromium
from tests.notebook import Notebook


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with two ranks, shared by a module's tests."""
    with Notebook() as opened:
        opened.run("%parallel start -n 2")
        yield opened


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
