"""Two pieces of evidence compared, in words for the closing line. numpy only.

Two values are the same if they are off by no more than rounding, relative to the largest number in them (at least 0.01):
1e-12 in float64, 1e-5 in float32, 0.01 in float16, 0.1 in bfloat16. Whole numbers, texts and random states must be equal.
The figure is the largest difference as it is, whatever its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nbpar.check.evidence import Evidence, Seen

LEAST = 1e-2  # what is smaller, biases that began at zero, say, is as far off as this may be


@dataclass(frozen=True)
class Difference:
    """name: what differs. by: how much at most; nan where that is no number, and why says what it is."""

    name: str
    by: float
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.why}" if self.why else f"{self.name} by {self.by:.1e}"


@dataclass(frozen=True)
class Verdict:
    """steps: optimiser steps after which one process and the ranks were compared, 0: at the end of a cell without any.

    largest: difference of any numbers. differences: what is not the same, in the order of `Evidence`; compared: how many values.
    reason: why nothing was compared.
    """

    steps: int = 0
    largest: float = 0.0
    differences: tuple[Difference, ...] = ()
    compared: int = 0
    reason: str = ""

    @property
    def same(self) -> bool:
        return not self.differences and not self.reason

    def __str__(self) -> str:
        if self.reason:
            return f"not compared with one process: {self.reason}"
        when = f"after {self.steps} step{'s' if self.steps > 1 else ''}" if self.steps else "at the end"
        if self.same:
            return f"same as one process {when}: {self.largest:.1e}" if self.largest else f"same as one process {when}: 0"
        return f"differs from one process {when}: {self._first()}"

    def _first(self) -> str:
        """The first of the losses, of the weights, and of what is no number; and the largest."""
        first, *others = self.differences
        words = [str(first)]
        if first.name.startswith("loss ") and (weight := next((d for d in others if not d.name.startswith("loss ")), None)):
            words.append(str(weight))
        most = max((d for d in self.differences if not d.why), key=lambda d: d.by, default=first)
        if str(most) not in words:
            words.append(f"most {most}")
        if len(self.differences) > len(words):
            words.append(f"{len(self.differences)} of {self.compared} values")
        return ", ".join(words)


def compare(alone: Evidence | str, ranks: Evidence) -> Verdict:
    """alone: of one process, or why there is none."""
    if isinstance(alone, str):
        return Verdict(reason=alone)
    if (alone.steps, alone.ended) != (ranks.steps, ranks.ended):
        return Verdict(ranks.steps, math.nan, (Difference("the number of steps", math.nan, f"is {alone.steps} there"),))
    largest, differences = 0.0, []
    for name in {**alone.values, **ranks.values}:
        here, there = ranks.values.get(name), alone.values.get(name)
        if here is None or there is None:
            differences.append(Difference(name, math.nan, "is there alone" if here is None else "is not there"))
            continue
        by, why = distance(there, here)
        largest = max(largest, 0.0 if math.isnan(by) else by)
        if why or by > allowed(there, here):
            differences.append(Difference(name, by, why))
    for stream in alone.random.keys() & ranks.random.keys():
        if alone.random[stream] != ranks.random[stream]:
            differences.append(Difference(f"the random state of {stream}", math.nan, "differs"))
    compared = len({**alone.values, **ranks.values}) + len(alone.random)
    return Verdict(ranks.steps, largest, tuple(differences), compared)


def distance(there: Seen, here: Seen) -> tuple[float, str]:
    """The largest difference; or why there is no such number."""
    a, b = there.value, here.value
    if isinstance(a, str) or isinstance(b, str):
        return (0.0, "") if isinstance(a, str) and isinstance(b, str) and a == b else (math.nan, "is another text")
    if a.shape != b.shape:
        return math.nan, f"has shape {shape(b)}, not {shape(a)}"
    if not a.size:
        return 0.0, ""
    wide = np.result_type(a, b, np.float64)
    a, b = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    most = float(off.max())
    return (most, "") if math.isfinite(most) else (math.nan, "is infinite or no number in one of them")


def allowed(there: Seen, here: Seen) -> float:
    """How far two values may be off by rounding alone."""
    rounding = max(there.rounding, here.rounding)
    if not rounding:
        return 0.0
    sizes = np.abs(there.value[np.isfinite(there.value)])
    return rounding * max(LEAST, float(sizes.max(initial=0.0)))


def shape(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    return "×".join(map(str, array.shape)) or "of a number"
