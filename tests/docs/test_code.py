"""Every code block of the documentation runs: Python in a real notebook, one for each page; shell lines name what exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess

import pytest

from benchmarks.__main__ import BENCHMARKS, REPORTS
from nbpar.__main__ import COMMANDS
from tests.docs.blocks import ROOT, Block, blocks, lacking
from tests.notebook import ANSI, Notebook

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TRANSLATED = ["README.zh-CN.md"]
SHELL = [block for page in PAGES + TRANSLATED for block in blocks(page) if block.language in ("sh", "bash", "console")]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


def test_every_block_says_what_it_is() -> None:
    known = {"python", "sh", "text", "yaml", "dockerfile", "toml", "json"}
    assert [block.place for page in PAGES for block in blocks(page) if block.language not in known] == []


def test_the_translation_has_the_same_code() -> None:
    english, chinese = ([block.code for block in blocks(page) if block.language == "python"] for page in PAGES[:1] + TRANSLATED)
    assert english == chinese


def test_no_code_is_hidden_from_these_tests() -> None:
    """A block by its indentation is text: it has no language, and nothing runs it."""
    for page in PAGES:
        plain = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert not re.findall(r"^    .*(?: = |\(.*\)$|import ).*$", plain, re.MULTILINE), page


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))])
def test_python(page: str, tmp_path: object) -> None:
    with Notebook(cwd=str(tmp_path)) as notebook:
        for block in blocks(page):
            if block.language != "python" or block.reason:
                continue
            for code in block.first:
                notebook.run(code)
            cell = notebook.run(block.code, fails=True)
            assert cell.error == block.raises, f"{block.place}: {cell.traceback}\n{cell.stdout}{cell.stderr}"
            shown = "\n".join(str(data.get("text/plain", "")) for data in [*cell.shown, cell.result or {}])
            printed = ANSI.sub("", "\n".join([cell.stdout, shown, cell.traceback]))
            assert lacking(block.printed, printed) == [], f"{block.place}:\n{printed}"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_shell(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    if block.reason:
        return
    for line in block.code.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            known(block, words)


def known(block: Block, words: list[str]) -> None:
    """Raises AssertionError for a command that does not exist here."""
    words[0] = words[0].removeprefix(".venv/bin/")
    match words:
        case ["make", target, *_]:
            assert target in TARGETS, f"{block.place}: there is no target {target}"
        case ["python", "-m", "nbpar", command, *_]:
            assert command in COMMANDS or command.startswith("-"), f"{block.place}: there is no command {command}"
        case ["python", "-m", "benchmarks", *names]:
            assert {name for name in names if not name.startswith("-")} <= {*BENCHMARKS, *REPORTS}, block.place
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"{block.place}: there is no module {module}"
        case ["pip", "install", *what]:
            named = {extra for word in what for extra in re.findall(r"\[(.*)\]", word)}
            assert named <= EXTRAS, f"{block.place}: there is no extra {named}"
        case ["jupyter", *_]:
            pass
        case _:
            raise AssertionError(f"{block.place}: is {shlex.join(words)!r} right? Teach this test, or mark the block as not run")
