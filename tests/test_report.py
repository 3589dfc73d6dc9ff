"""The page that compares tools, from figures that were kept: what it says of each kind of result. Nothing is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.peers import TOOLS, TOPICS, Torchrun


def results() -> dict[str, dict[str, Any]]:
    """nbpar is 2.0, peers 3.0; a script has nothing."""
    made: dict[str, dict[str, Any]] = {}
    for key, topic in TOPICS.items():
        value = [0.25, True, False] if topic.unit is None else [3.0, 3.5, 2.5]
        made[key] = {tool.name: None if tool is Torchrun else list(value) for tool in TOOLS}
        if topic.unit:
            made[key]["nbpar"] = [2.0]
    made["orphans"] = {tool.name: [4] for tool in TOOLS}
    return made


FACTS = {"python": "3.x", "packages": {"torch": "2"}, "before": 2.0, "after": 1.9}


def test_a_page_says_what_was_found() -> None:
    found = results()
    found["prints"]["ipyparallel (MPI engines)"] = {"figures": [0.5], "remark": "3 lines lost"}
    found["pull"]["jupyter-distributed"] = {"failed": "ImportError: no such module"}
    page = report.page(found, FACTS)
    assert "| 2 | 3 [2.5 – 3.5] | 3 [2.5 – 3.5] | 3 [2.5 – 3.5] | none |" in page
    assert "| 0.5; 3 lines lost |" in page
    assert "0.25 s, named, next cell does **not** work" in page
    worse = page.split("## What nbpar does worse")[1]
    assert "2 s; ipyparallel (MPI engines) 0.5." in worse and "training step" not in worse
    assert "jupyter-distributed: `ImportError: no such module`" in page


def test_what_is_not_measured_yet_is_said() -> None:
    found = results()
    found["start"] = found["fault0"] = {tool.name: report.NOT_YET for tool in TOOLS}
    page = report.page(found, {**FACTS, "after": None})
    assert page.count(f"| {report.NOT_YET} |") >= 2 and "? after" in page


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "KEPT", tmp_path)
    calls: list[str] = []

    def fail(tool: Any) -> Any:
        calls.append(tool.name)
        raise RuntimeError("first\nlast line")

    topic = report.Topic("a topic", "s", fail)
    for _ in range(2):
        assert report.measured("topic", topic, Torchrun) == {"failed": "last line"}
    assert calls == [Torchrun.name] and json.loads((tmp_path / "topic-Torchrun.json").read_text()) == {"failed": "last line"}
