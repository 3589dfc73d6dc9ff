"""A notebook as plain text: a setup cell and a training cell, as a person would write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

START = """
import copy, io, math, os, random
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.set_default_dtype(torch.float64)
torch.manual_seed(0); random.seed(0); np.random.seed(0)
"""


@dataclass(frozen=True)
class Cell:
    """tolerance: the largest difference from one process; why: it is larger than rounding in float64 makes it by itself.

    split: whether mode `data` splits its calls. options: of `data` and `hybrid`. ignore: names that are not compared.
    """

    name: str
    setup: str
    train: str
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-12
    why: str = ""
    split: bool = True
    ignore: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        return START + self.setup


def cells(cases: Mapping[str, tuple[str, str]], **more: Any) -> dict[str, Cell]:
    """Of pairs of texts, by name."""
    return {name: Cell(name, setup, train, **more) for name, (setup, train) in cases.items()}
