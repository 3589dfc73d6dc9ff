"""Loops count their turns without being seen; phases are written down where they happen."""

from __future__ import annotations

import ast
import gc
import io
import sys
import time
import traceback
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from tqdm import tqdm

from nbpar.comm.trace import Trace
from nbpar.ranks.loops import Loops, length
from nbpar.ranks.phases import NAMES, Phases
from nbpar.ranks.progress import Progress, bars
from nbpar.ranks.pulse import TOGETHER, Pulse


@pytest.fixture
def loops() -> Iterator[Loops]:
    made = Loops()
    made.begin(True)
    yield made
    made.begin(False)


def run(loops: Loops, code: str, **names: Any) -> dict[str, Any]:
    names["now"] = loops.now
    exec(compile(loops.visit(ast.parse(code)), "<cell>", "exec"), names)
    return names


def test_two_levels_are_counted(loops: Loops) -> None:
    code = "seen = []\nfor epoch in range(2):\n    for x in [5, 6, 7]:\n        for z in 'ab': pass\n        seen.append(now())"
    names = run(loops, code)
    assert names["seen"] == [((e, 2), (x, 3)) for e in (1, 2) for x in (1, 2, 3)]


def test_loops_inside_blocks_count_and_those_inside_functions_do_not(loops: Loops) -> None:
    names = run(
        loops, "if True:\n    for x in range(4): a = now()\ndef f():\n    for y in range(9): pass\n    return now()\nb = f()"
    )
    assert names["a"] == names["b"] == ((4, 4),)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (range(5), 5),
        ([1, 2], 2),
        (enumerate([1, 2, 3]), 3),
        (zip(range(9), [1, 2], strict=False), 2),
        (iter([1, 2]), 2),
        ((n for n in "ab"), 0),
        (5, 0),
    ],
)
def test_lengths_that_can_be_told(items: Any, expected: int) -> None:
    assert length(items) == expected


def test_false_items_and_empty_loops_pass(loops: Loops) -> None:
    names = run(
        loops, "out = [None]\nfor x in [0, None, '', []]: out.append(x)\nfor y in []: out.append(1)\nelse: out.append('else')"
    )
    assert names["out"] == [None, 0, None, "", [], "else"]


def test_items_live_no_longer(loops: Loops) -> None:
    class Item: ...

    gone: list[bool] = []
    code = "for x in items():\n    r = ref(x)\n    del x\n    gone.append(r() is None)"
    run(loops, code, items=lambda: (Item() for _ in range(3)), ref=weakref.ref, gone=gone)
    gc.collect()
    assert gone == [True, True, True]


def test_errors_look_the_same(loops: Loops) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    for code in ("for x in broken(): pass", "for x in 5: pass"):
        seen = []
        for on in (True, False):
            loops.begin(on)
            try:
                run(loops, code, broken=broken)
            except (KeyError, TypeError) as error:
                frames = traceback.extract_tb(error.__traceback__)
                seen.append((repr(error), [(frame.name, frame.lineno) for frame in frames]))
        assert seen[0] == seen[1]


def test_a_module_that_is_half_imported_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.std", types.ModuleType("tqdm.std"))
    assert bars() == ()


def test_only_the_cell_that_is_asked_about_tells() -> None:
    progress = Progress(Trace())
    progress.begin(1, True)
    assert progress.pause is None and progress.pulses() == ()
    progress.watch(2)  # which is yet to begin
    assert not told(progress)
    progress.end()
    progress.begin(2, True)
    assert len(told(progress)) == TOGETHER
    progress.end()
    assert progress.pause is None and progress.pulses() == ()


def told(progress: Progress) -> tuple[Pulse, ...]:
    """At the next moment to tell, with all taken before it."""
    for _ in range(2 * TOGETHER):
        time.sleep((progress.pause or 0) / 1000)
        if len(pulses := progress.pulses()) == TOGETHER:
            return pulses
    return ()


def test_open_bars_are_read() -> None:
    outer = tqdm(total=10, file=io.StringIO())
    inner = tqdm(total=5, file=io.StringIO())
    outer.update(3)
    assert bars() == ((4, 10), (1, 5))
    inner.close()
    outer.close()
    assert bars() == ()


def test_phases_of_a_training_loop() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    before = nn.Module.__call__, torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    phases = Phases()
    with phases.watching():
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            opt.step()
    assert (nn.Module.__call__, torch.autograd._engine_run_backward) == before  # type: ignore[attr-defined]
    columns = phases.columns()
    assert [NAMES[k] for k in columns["phase"]] == ["forward", "backward", "update"] * 3
    assert phases.updates == 3
    assert (columns["start"] <= columns["end"]).all()
    assert (columns["end"][:-1] <= columns["start"][1:]).all()


def test_a_failed_call_is_written_down_too() -> None:
    phases = Phases()
    with phases.watching():
        with pytest.raises(RuntimeError):
            nn.Linear(3, 3)(torch.ones(2, 5))
        nn.Linear(3, 3)(torch.ones(2, 3))
    assert len(phases.columns()["phase"]) == 2
