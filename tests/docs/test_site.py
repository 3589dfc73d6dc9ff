"""The site is built without a warning, and its made parts are up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

import nbpar
from tests.docs.blocks import ROOT
from tools import figures, options, python


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=env)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in tmp_path.glob("*.html")} == {*pages, "404"}
    assert not re.search(r'(src|href)="https?://[^"]*\.(js|css|woff2?)"', (tmp_path / "index.html").read_text()), (
        "loads from elsewhere"
    )


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"^  - (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("tool", [options, python], ids=["options", "python"])
def test_the_lists_are_those_of_the_code(tool: ModuleType) -> None:
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), f"run `python -m {tool.__name__}`"


def test_the_list_of_functions_is_complete() -> None:
    headings = re.findall(r"^##+ `?(?:nbpar\.)?(\w+)", python.page(), re.MULTILINE)
    assert set(nbpar.__all__) <= set(headings)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_drawings_are_those_of_the_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    figures.FIGURES[name]().write(name)
    drawn = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8"), "run `python -m tools.figures`"
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
