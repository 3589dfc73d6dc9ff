"""What snapshots of a long cell cost, by mode: a GPT of 10 M parameters with AdamW, 120 MiB of state, one a minute.

Of a model in the notebook, which is sent there, and of one that stays on the ranks, which they write to files.
"""

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
    return [row for kept in (False, True) for mode in MODES for row in rows_of(mode, kept)]


def rows_of(mode: str, kept: bool = False) -> list[Row]:
    """kept: whether the model stays on the ranks."""
    with Nbpar() as ours:
        ours.connect()
        ours.run(SETUP)
        if kept:
            ours.run(f"%%parallel {mode} --quiet --keep model,opt\n{SETUP}")
        steps = max(5, int(SECONDS / (train(ours, mode, 5, "off") / 5)))
        taken, none = [], []
        for _ in range(ROUNDS):
            none.append(train(ours, mode, steps, "off"))
            taken.append(train(ours, mode, steps, str(EVERY)))
    one = [(with_some - without) / (with_some // EVERY) for with_some, without in zip(taken, none, strict=True)]
    what = f"{mode}, a kept model" if kept else mode
    return [
        Row(f"one snapshot of 120 MiB, {what}", [1e3 * seconds for seconds in one], "", [], "ms"),
        Row(f"a minute of {what}, with a snapshot", [60 + seconds for seconds in one], "without", [60.0] * ROUNDS, "s", "≤ 1.02×"),
    ]


def train(notebook: Nbpar, mode: str, steps: int, every: str) -> float:
    """Seconds of the slower rank."""
    notebook.run(f"%%parallel {mode} --quiet --snapshot {every}\n{STEPS.format(steps=steps)}")
    return float(notebook.value("float(max(seconds)) if hasattr(seconds, '__iter__') else seconds"))
