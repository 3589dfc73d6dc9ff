"""Models as libraries of ready-made ones write them: they ask something of all rows, choose by a row's own number, or hand objects
on. Each is split over ranks and equal to one process, but for those in `WHOLE`."""

from __future__ import annotations

from tests.cells import cells

ROWS = """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a, self.b = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(8))

    def forward(self, x, mask, **more):
        h = torch.tanh(self.a(self.e(x)))
        {body}

torch.manual_seed(1)
words, target = torch.randint(0, 20, (6 * 16, 5)), torch.randint(0, 4, (6 * 16,))
lengths = torch.full((len(words),), 5)
lengths[16:32] = torch.randint(1, 6, (16,))  # the second and the fifth batch are padded, the fifth in one row only
lengths[4 * 16 + 1] = 2
masks = torch.arange(5) < lengths[:, None]
batches = list(zip(words.split(16), masks.split(16), target.split(16)))
model = M()
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
losses = []
"""
STEPS = """
for x, mask, y in batches:
    opt.zero_grad()
    out = model(x, mask)
    loss = F.cross_entropy({out}, y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
"""

# What becomes of the hidden values `h` (rows, 5, 8) and the mask (rows, 5).
BODIES = {
    "no mask where all are whole": """
        pad = None if mask.all() else ~mask
        return self.b(self.attention(h, h, h, key_padding_mask=pad)[0].mean(1))""",
    "no mask where torch says that all are whole": """
        pad = None if torch.all(mask) else ~mask
        return self.b(self.attention(h, h, h, key_padding_mask=pad)[0].mean(1))""",
    "no mask where none is padded": """
        pad = ~mask if (~mask).any() else None
        return self.b(self.attention(h, h, h, key_padding_mask=pad)[0].mean(1))""",
    "no mask where as many count as there are": """
        pad = None if mask.sum() == mask.numel() else ~mask
        return self.b(self.attention(h, h, h, key_padding_mask=pad)[0].mean(1))""",
    "values are looked after": """
        if torch.isnan(h).any() or not torch.isfinite(h).all():
            raise ValueError("not a number")
        return self.b(h.mean(1))""",
    "the last word of each row": """
        return self.b(h[torch.arange(x.shape[0]), mask.sum(1) - 1])""",
    "the last words of each row": """
        rows = torch.arange(h.size(0), device=h.device)[:, None]
        return self.b(h[rows, (mask.sum(1) - 1)[:, None] * torch.tensor([1, 0])].sum(1))""",
    "a mask by rows' numbers": """
        rows, places = torch.arange(x.shape[0])[:, None], torch.arange(5)[None]
        return self.b((h * mask[rows, places][..., None]).mean(1))""",
    "as many rows as there are masks": """
        if mask.shape[0] != self.gate[None].shape[0]:
            mask = mask.expand(x.shape[0], -1)
        return self.b((h * mask[..., None]).mean(1))""",
    "batch norm of one place, several rows": """
        return self.b(F.batch_norm(h.mean(1), None, None, training=True))""",
}
PROGRAMS = {name: (ROWS.replace("{body}", body.strip()), STEPS.replace("{out}", "out")) for name, body in BODIES.items()}

OBJECTS = """
class Cache:
    def __init__(self):
        self.layers, self.seen = [], 0
    def add(self, h):
        self.layers.append(Layer(h))
        return self
class Layer:
    def __init__(self, h):
        self.keys, self.dtype = h, h.dtype
"""
PROGRAMS["an object beside the result"] = (
    OBJECTS + ROWS.replace("{body}", "return self.b(h.mean(1)), Cache().add(h)"),
    STEPS.replace("{out}", "out[0]") + "kept = out[1].layers[0].keys\n",
)
PROGRAMS["the sum of losses by a number that is given"] = (
    ROWS.replace("{body}", "return F.cross_entropy(self.b(h.mean(1)), more['y'], reduction='sum') / more['number']"),
    STEPS.replace("model(x, mask)", "model(x, mask, y=y, number=torch.tensor(16))").replace("F.cross_entropy({out}, y)", "out"),
)

# What runs whole on every rank.
CACHED = """
        cache = more['cache']
        cache.add(h)
        return self.b(torch.cat([layer.keys for layer in cache.layers], 1).mean(1))"""
WHOLE = {
    "a cache that is handed on": (
        OBJECTS + ROWS.replace("{body}", CACHED.strip()),
        "cache, outs = Cache(), []\nmodel.eval()\nwith torch.no_grad():\n    for x, mask, y in batches:\n"
        "        outs.append(model(x, mask, cache=cache))\nkept = [layer.keys for layer in cache.layers]\n",
    ),
    "a list that grows": (
        ROWS.replace("{body}", "more['kept'].append(h.detach())\n        return self.b(h.mean(1))"),
        "grown = []\n" + STEPS.replace("model(x, mask)", "model(x, mask, kept=grown)").replace("{out}", "out"),
    ),
    "another way for all of the fifth batch's rows": (
        ROWS.replace("{body}", "h = h if mask.all() else h - self.gate * h.mean(0)\n        return self.b(h.mean(1))"),
        STEPS.replace("{out}", "out"),
    ),
    "rows' numbers as numbers": (
        ROWS.replace("{body}", "return self.b(h.mean(1) + self.gate * torch.arange(x.shape[0])[:, None])"),
        STEPS.replace("{out}", "out"),
    ),
    "the row before": (
        ROWS.replace("{body}", "return self.b(h.mean(1) + self.gate * h[torch.arange(x.shape[0]) - 1, 0])"),
        STEPS.replace("{out}", "out"),
    ),
    "rows backwards by their numbers": (
        ROWS.replace("{body}", "return self.b(h.mean(1) + self.gate * h[-torch.arange(x.shape[0]), 0])"),
        STEPS.replace("{out}", "out"),
    ),
    "another row's number": (
        ROWS.replace("{body}", "r = torch.arange(x.shape[0]).view(-1, 2).flip(1).reshape(-1)\n        return self.b(h[r, 0])"),
        STEPS.replace("{out}", "out"),
    ),
    "how many hold": (
        ROWS.replace("{body}", "h = h if mask.sum() > 79 else h - self.gate * h.mean(0)\n        return self.b(h.mean(1))"),
        STEPS.replace("{out}", "out"),
    ),
}
SPLIT = cells(PROGRAMS)
CELLS = {**SPLIT, **cells(WHOLE)}
