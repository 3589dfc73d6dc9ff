"""What snapshots of a long cell cost, by mode: a GPT of 10 M parameters with AdamW, 120 MiB of state, one a minute."""

from __future__ import annotations

from benchmarks.harness import Row
from benchmarks.notebooks import Nbpar

MODES = ("data", "model", "model --how tensor")
ROUNDS = 3
SECONDS = 9.0  # of training in one cell
EVERY = 3.0  # seconds between two snapshots here; a cell has 60
SETUP = """
import time, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, batch_first=True)
model = nn.Sequential(nn.Embedding(65, 384), nn.TransformerEncoder(layer, 6), nn.Linear(384, 65))
opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
X, y = torch.randint(65, (8, 64)), torch.randint(65, (8, 64))
"""
STEPS = """
begin = time.perf_counter()
for step in range({steps}):
    opt.zero_grad()
    F.cross_entropy(model(X).view(-1, 65), y.view(-1)).backward()
    opt.step()
seconds = time.perf_counter() - begin
"""


def rows() -> list[Row]:
    return [row for mode in MODES for row in rows_of(mode)]


def rows_of(mode: str) -> list[Row]:
    with Nbpar() as ours:
        ours.connect()
        ours.run(SETUP)
        steps = max(5, int(SECONDS / (train(ours, mode, 5, "off") / 5)))
        taken, none = [], []
        for _ in range(ROUNDS):
            none.append(train(ours, mode, steps, "off"))
            taken.append(train(ours, mode, steps, str(EVERY)))
    one = [(with_some - without) / (with_some // EVERY) for with_some, without in zip(taken, none, strict=True)]
    return [
        Row(f"one snapshot of 120 MiB, {mode}", [1e3 * seconds for seconds in one], "", [], "ms"),
        Row(f"a minute of {mode} with a snapshot", [60 + seconds for seconds in one], "without", [60.0] * ROUNDS, "s", "≤ 1.02×"),
    ]


def train(notebook: Nbpar, mode: str, steps: int, every: str) -> float:
    """Seconds of the slower rank."""
    notebook.run(f"%%parallel {mode} --quiet --snapshot {every}\n{STEPS.format(steps=steps)}")
    return float(notebook.value("float(max(seconds)) if hasattr(seconds, '__iter__') else seconds"))
