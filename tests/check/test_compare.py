"""Two pieces of evidence: what counts as the same, and the words for what does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from nbpar.check.compare import compare
from nbpar.check.evidence import Evidence, Seen, leaves, look_at

WEIGHTS = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)


def evidence(steps: int = 3, ended: bool = False, random: bytes = b"state", **values: Any) -> Evidence:
    seen = {name: look_at(value) for name, value in {"loss 1": torch.tensor(1.5), "w": WEIGHTS, **values}.items()}
    return Evidence(steps, ended, {name: value for name, value in seen.items() if value}, {"torch": random})


def test_equal_evidence_is_the_same() -> None:
    verdict = compare(evidence(), evidence())
    assert verdict.same and verdict.compared == 3
    assert str(verdict) == "same as one process after 3 steps: 0"


@pytest.mark.parametrize(
    ("dtype", "within", "beyond"),
    [(torch.float64, 1e-12, 1e-11), (torch.float32, 1e-5, 1e-4), (torch.float16, 1e-2, 5e-2), (torch.bfloat16, 0.05, 0.4)],
)
def test_rounding_is_told_and_is_no_fault(dtype: torch.dtype, within: float, beyond: float) -> None:
    """Relative to the largest number of the tensor, which is 2."""
    plain = WEIGHTS.to(dtype)
    assert (verdict := compare(evidence(w=plain), evidence(w=plain + within))).same and verdict.largest > 0
    assert str(verdict).startswith("same as one process after 3 steps: ")
    assert not compare(evidence(w=plain), evidence(w=plain + beyond)).same


def test_small_tensors_are_measured_by_their_own_size() -> None:
    bias = torch.zeros(3)
    bias[0] = 1e-6
    assert not compare(evidence(b=bias), evidence(b=2 * bias)).same
    assert compare(evidence(b=bias), evidence(b=bias + 1e-8)).same


def test_what_differs_first_and_most_is_named() -> None:
    there = evidence(first=torch.zeros(2), second=torch.ones(2))
    here = evidence(first=torch.full((2,), 0.25), second=torch.ones(2) + 0.5, w=WEIGHTS)
    verdict = compare(there, here)
    assert str(verdict) == "differs from one process after 3 steps: first by 2.5e-01, most second by 5.0e-01"
    loss = evidence(**{"loss 1": torch.tensor(1.75), "w": WEIGHTS + 1})
    assert str(compare(evidence(), loss)).endswith(": loss 1 by 2.5e-01, w by 1.0e+00")


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        (evidence(), evidence(random=b"other"), "the random state of torch differs"),
        (evidence(x=3), evidence(x=4), "x by 1.0e+00"),
        (evidence(x=True), evidence(x=False), "x by 1.0e+00"),
        (evidence(x="a"), evidence(x="b"), "x is another text"),
        (evidence(x=torch.ones(2, 3)), evidence(x=torch.ones(3)), "x has shape 3, not 2×3"),
        (evidence(x=1.0), evidence(), "x is there alone"),
        (evidence(), evidence(x=1.0), "x is not there"),
        (evidence(x=math.nan), evidence(x=1.0), "x is infinite or no number in one of them"),
        (evidence(steps=2, ended=True), evidence(), "the number of steps is 2 there"),
    ],
)
def test_what_is_no_rounding(there: Evidence, here: Evidence, words: str) -> None:
    assert words in str(compare(there, here))


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor([math.nan, 1.0]), torch.zeros(0), "text", 1j, np.arange(3)])
def test_no_number_is_the_same_as_no_number(value: Any) -> None:
    assert compare(evidence(x=value), evidence(x=value)).same


def test_other_moments_have_other_words() -> None:
    assert "after 1 step:" in str(compare(evidence(1), evidence(1)))
    assert "at the end" in str(compare(evidence(0, True), evidence(0, True)))
    assert str(compare("there it raised ValueError", evidence())) == "not compared with one process: there it raised ValueError"


def test_variables_are_looked_into() -> None:
    names = dict(leaves("x", {"a": [1, (2.0, "b")], 3: np.ones(2), "f": print}))
    assert list(names) == ["x['a'][0]", "x['a'][1][0]", "x['a'][1][1]", "x[3]"]
    assert look_at(np.array(["a"])) is None and look_at(np.float32(1)) == Seen(np.float32(1), 1e-5)
