"""The benchmarks' table: what a ratio and a target mean, and the kernel that they drive. No time is asserted."""

from __future__ import annotations

from typing import Literal

import pytest

from benchmarks.harness import CellFailed, Kernel, Row, alternate, table


def row(ours: list[float], theirs: list[float], target: str, better: Literal["lower", "higher"] = "lower") -> Row:
    return Row("a row", ours, "a peer", theirs, "s", target, better)


@pytest.mark.parametrize(
    ("measured", "ratio", "met"),
    [
        (row([1.0, 2.0, 9.0], [20.0, 20.0], "≥ 10×"), 10.0, True),
        (row([2.1], [20.0], "≥ 10×"), 20 / 2.1, False),
        (row([1.2], [1.0], "≤ 1.3×"), 1 / 1.2, True),
        (row([1.4], [1.0], "≤ 1.3×"), 1 / 1.4, False),
        (row([1.7], [1.0], "≥ 1.6×", "higher"), 1.7, True),
        (row([0.0], [3.0], "≤ 0"), None, True),
        (row([300.0], [], "≤ 269"), None, False),
        (row([5.0], [4.0], ""), 0.8, None),
        (row([], [4.0], "≥ 2×"), None, None),
    ],
)
def test_ratio_and_target(measured: Row, ratio: float | None, met: bool | None) -> None:
    assert measured.ratio == (pytest.approx(ratio) if ratio is not None else None)
    assert measured.met is met


def test_table_has_a_line_a_row_and_aligned_columns() -> None:
    lines = table(
        [Row("fast", [1.0, 3.0, 2.0], "slow peer", [40.0], "ms", "≥ 10×"), Row("lonely", [1.0], "–", [], "s")]
    ).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == len({len(line) for line in lines}) == 1
    assert "2 [1 – 3]" in lines[2] and "20.00×" in lines[2] and "yes" in lines[2]


def test_programs_run_in_turn() -> None:
    order: list[str] = []
    figures = alternate(2, lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0)
    assert order == ["a", "b", "a", "b"]
    assert figures == [[1.0, 1.0], [2.0, 2.0]]


def test_kernel_gives_outputs_values_and_errors() -> None:
    with Kernel() as kernel:
        seconds, outputs = kernel.run("x = [1, 'two']\nprint('printed')\nlen(x)")
        assert seconds > 0
        assert outputs.text == "printed\n2"
        assert kernel.value("x") == [1, "two"]
        with pytest.raises(CellFailed, match="ZeroDivisionError"):
            kernel.run("1 / 0")
