"""What a process grows by when a cell makes and trains a GPT of 160 MiB with AdamW: alone, and with its layers on two ranks."""

from __future__ import annotations

from benchmarks.harness import Row
from benchmarks.notebooks import Nbpar

CELL = """
import resource, torch, torch.nn as nn, torch.nn.functional as F
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB, on Linux
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize() / 2**20
torch.manual_seed(0)
model = nn.Sequential(
    nn.Embedding(512, 768),
    *[nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True, norm_first=True) for _ in range(6)],
    nn.Linear(768, 512),
)
opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
x, y = torch.randint(512, (2, 32)), torch.randint(512, (2, 32))
for _ in range(3):
    opt.zero_grad()
    F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    opt.step()
grown = peak() - before
weights = sum(p.nbytes for p in model.parameters()) / 2**20
"""


def rows() -> list[Row]:
    with Nbpar() as plain:
        plain.run(CELL)
        one, weights = plain.value("grown"), plain.value("weights")
    with Nbpar() as ours:
        ours.connect()
        ours.run("%%parallel model --keep model,opt --quiet\n" + CELL)
        each = ours.value("[float(one) for one in grown]")
    return [Row(f"peak of a rank, {weights:.0f} MiB of weights and AdamW", each, "one process", [one], "MiB", "≥ 1.5×")]
