"""In which order stages run micro-batches, and how long they then wait.

    gpipe, 3 stages, 3 micro-batches         1f1b
    0  F0 F1 F2 .. .. .. .. B2 B1 B0         0  F0 F1 F2 .. .. B0 .. B1 .. B2
    1  .. F0 F1 F2 .. .. B2 B1 B0 ..         1  .. F0 F1 .. B0 F2 B1 .. B2 ..
    2  .. .. F0 F1 F2 B2 B1 B0 .. ..         2  .. .. F0 B0 F1 B1 F2 B2 .. ..

(Huang et al. 2019; Narayanan et al. 2019. With equal stages both wait (P - 1) / (M + P - 1) of the time.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Step = tuple[str, int]  # (forward or backward, micro-batch)


@dataclass(frozen=True)
class Span:
    """What one rank did from start to end, in seconds or in units of cost."""

    rank: int
    phase: str
    start: float
    end: float
    label: str = ""


def gpipe(stages: int, micro: int, stage: int) -> list[Step]:
    """All forward, then all backward in reverse."""
    return [("forward", m) for m in range(micro)] + [("backward", m) for m in reversed(range(micro))]


def one_forward_one_backward(stages: int, micro: int, stage: int) -> list[Step]:
    """As soon as it can, a stage goes back; it keeps at most (stages - stage) micro-batches' activations."""
    ahead = min(stages - stage, micro)
    steps: list[Step] = [("forward", m) for m in range(ahead)]
    for m in range(micro):
        steps.append(("backward", m))
        if m + ahead < micro:
            steps.append(("forward", m + ahead))
    return steps


SCHEDULES: dict[str, Callable[[int, int, int], list[Step]]] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}


def simulate(schedule: str, forward: Sequence[float], backward: Sequence[float], micro: int) -> list[Span]:
    """When each stage runs what, if nothing but the cost counts. forward, backward: a stage's cost for the whole batch."""
    stages = len(forward)
    left = [SCHEDULES[schedule](stages, micro, stage)[::-1] for stage in range(stages)]
    ended: dict[tuple[str, int, int], float] = {}
    free = [0.0] * stages
    spans = []
    while any(left):
        moved = False
        for stage in range(stages):
            while left[stage]:
                phase, m = left[stage][-1]
                needs = _needs(phase, m, stage, stages)
                if needs is not None and needs not in ended:
                    break
                left[stage].pop()
                start = max(free[stage], ended[needs] if needs else 0.0)
                cost = (forward if phase == "forward" else backward)[stage] / micro
                free[stage] = ended[phase, m, stage] = start + cost
                spans.append(Span(stage, phase, start, start + cost, f"micro-batch {m}"))
                moved = True
        assert moved, "a schedule that waits for itself"
    return spans


def _needs(phase: str, micro: int, stage: int, stages: int) -> tuple[str, int, int] | None:
    """What has to end before."""
    if phase == "forward":
        return ("forward", micro, stage - 1) if stage else None
    return ("backward", micro, stage + 1) if stage < stages - 1 else ("forward", micro, stage)


def bubble(spans: Sequence[Span], stages: int) -> float:
    """The share of the stages' time in which they wait."""
    if not spans:
        return 0.0
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    busy = sum(span.end - span.start for span in spans)
    return 1 - busy / (stages * whole) if whole else 0.0


def kept(schedule: str, stages: int, micro: int, stage: int) -> float:
    """The largest share of the batch whose activations a stage keeps at a time."""
    held = most = 0
    for phase, _ in SCHEDULES[schedule](stages, micro, stage):
        held += 1 if phase == "forward" else -1
        most = max(most, held)
    return most / micro
