"""The staircases that the module draws, and the known share of waiting."""

from __future__ import annotations

import pytest

from nbpar.plan.schedule import SCHEDULES, bubble, kept, simulate


def drawn(schedule: str, stages: int, micro: int) -> list[str]:
    """A line a stage, as in the module's text: forward and backward take one unit each."""
    spans = simulate(schedule, [micro] * stages, [micro] * stages, micro)
    width = round(max(span.end for span in spans))
    lines = [[".."] * width for _ in range(stages)]
    for span in spans:
        assert lines[span.rank][round(span.start)] == ".."
        lines[span.rank][round(span.start)] = span.phase[0].upper() + span.label.split()[-1]
    return [" ".join(line) for line in lines]


def test_gpipe_is_as_drawn() -> None:
    assert drawn("gpipe", 3, 3) == [
        "F0 F1 F2 .. .. .. .. B2 B1 B0",
        ".. F0 F1 F2 .. .. B2 B1 B0 ..",
        ".. .. F0 F1 F2 B2 B1 B0 .. ..",
    ]


def test_1f1b_is_as_drawn() -> None:
    assert drawn("1f1b", 3, 3) == [
        "F0 F1 F2 .. .. B0 .. B1 .. B2",
        ".. F0 F1 .. B0 F2 B1 .. B2 ..",
        ".. .. F0 B0 F1 B1 F2 B2 .. ..",
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro"), [(1, 1), (2, 1), (4, 4), (4, 8), (3, 300)])
def test_equal_stages_wait_the_known_share(schedule: str, stages: int, micro: int) -> None:
    spans = simulate(schedule, [1.0] * stages, [2.0] * stages, micro)
    assert bubble(spans, stages) == pytest.approx((stages - 1) / (micro + stages - 1))


def test_1f1b_keeps_fewer_activations() -> None:
    assert [kept("gpipe", 4, 8, stage) for stage in range(4)] == [1, 1, 1, 1]
    assert [kept("1f1b", 4, 8, stage) for stage in range(4)] == [4 / 8, 3 / 8, 2 / 8, 1 / 8]
