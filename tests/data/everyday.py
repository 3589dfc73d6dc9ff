"""Modules as people write them, on batches of ordinary size: masks, `len(x)`, indices, functions of their own. Each is a cell."""

from __future__ import annotations

from tests.cells import Cell

DATA = """
X, T, D, losses = torch.randn(165, 16, 16), 16, 16, []
lengths = torch.randint(2, T + 1, (165,))
pads = torch.arange(T)[None] >= lengths[:, None]
ids = torch.randint(1, 50, (165, T)).masked_fill(pads, 0)
labels = torch.randint(0, 4, (165,))
batches = [(t[a:b] for t in (X, pads, lengths, ids, labels)) for a, b in ((0, 64), (64, 128), (128, 165))]
"""
STEPS = """
for x, pad, length, words, y in batches:
    opt.zero_grad()
    loss = F.cross_entropy({call}, y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
"""
MADE = "model = M()\nopt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)\n"
CELLS: dict[str, Cell] = {}


def module(name: str, init: str, forward: str, call: str = "model(x)", before: str = "") -> None:
    """init, forward: lines of the methods; forward's first line names its arguments."""
    takes, *lines = forward.strip().splitlines()
    methods = ("def __init__(self):", "    super().__init__()", *(f"    {line}" for line in init.strip().splitlines()))
    methods += (f"def forward(self, {takes}):", *(f"    {line}" for line in lines))
    setup = DATA + before + "class M(nn.Module):\n" + "\n".join(f"    {line}" for line in methods) + "\n" + MADE
    CELLS[name] = Cell(name, setup, STEPS.format(call=call))


def function(name: str, methods: str) -> None:
    """An `autograd.Function` between two layers."""
    module(name, LAYERS, "x\nreturn self.b(Own.apply(self.a(x.mean(1))))", before="class Own(torch.autograd.Function):" + methods)


LAYER = "self.a = nn.Linear(D, 4)"
LAYERS = "self.a, self.b = nn.Linear(D, 8), nn.Linear(8, 4)"
ENCODER = """
layer = nn.TransformerEncoderLayer(D, 2, 32, dropout=0.1, batch_first=True)
self.body, self.a, self.e = nn.TransformerEncoder(layer, 2), nn.Linear(D, 4), nn.Embedding(50, D, padding_idx=0)
"""
GRU = "self.rnn, self.a = nn.GRU(D, 8, batch_first=True), nn.Linear(8, 4)"

module("padding mask", ENCODER, "x, pad\nreturn self.a(self.body(x, src_key_padding_mask=pad).mean(1))", "model(x, pad)")
module("padding mask by lengths, mean of each row", ENCODER, """x, length
pad = torch.arange(x.size(1))[None] >= length[:, None]
h, kept = self.body(x, src_key_padding_mask=pad), (~pad)[..., None].to(x.dtype)
return self.a((h * kept).sum(1) / kept.sum(1))
""", "model(x, length)")  # fmt: skip
module("padding mask by words", ENCODER, """words
pad = words == 0
h = self.body(self.e(words), src_key_padding_mask=pad).masked_fill(pad[..., None], 0.0)
return self.a(h.sum(1) / (~pad).sum(1, keepdim=True).clamp(min=1))
""", "model(words)")  # fmt: skip
module("causal mask and padding", ENCODER, """x, pad
mask = nn.Transformer.generate_square_subsequent_mask(x.size(1))
return self.a(self.body(x, mask=mask, src_key_padding_mask=pad).mean(1))
""", "model(x, pad)")  # fmt: skip
module("multi-head attention, padding, time first", "self.m, self.a = nn.MultiheadAttention(D, 2), nn.Linear(D, 4)", """x, pad
x = x.transpose(0, 1)
return self.a(self.m(x, x, x, key_padding_mask=pad, need_weights=False)[0].mean(0))
""", "model(x, pad)")  # fmt: skip
module("encoder and decoder", "self.t, self.a = nn.Transformer(D, 2, 1, 1, 32, batch_first=True), nn.Linear(D, 4)", """x, other, pad
mask = self.t.generate_square_subsequent_mask(other.size(1))
return self.a(self.t(x, other, tgt_mask=mask, src_key_padding_mask=pad, memory_key_padding_mask=pad).mean(1))
""", "model(x, x[:, :7], pad)")  # fmt: skip
module("a class token for each row", ENCODER + "self.token = nn.Parameter(torch.zeros(1, 1, D))", """x
return self.a(self.body(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])
""")  # fmt: skip
module("a class token, repeated", ENCODER + "self.token = nn.Parameter(torch.zeros(1, 1, D))", """x
return self.a(self.body(torch.cat([self.token.repeat(x.shape[0], 1, 1), x], 1))[:, 0])
""")  # fmt: skip
module("view of len(x) rows", "self.a = nn.Linear(T * D, 4)", "x\nreturn self.a(x.view(len(x), -1))")
module("first state of zeros", GRU, "x\nreturn self.a(self.rnn(x, torch.zeros(1, len(x), 8))[0][:, -1])")
module(
    "last state by places", GRU, "x, length\nreturn self.a(self.rnn(x)[0][torch.arange(len(x)), length - 1])", "model(x, length)"
)
module("states by places and more", GRU, """x, length
h = self.rnn(x)[0][torch.arange(x.size(0))[:, None], torch.stack([length - 1, length - 2], 1)]
return self.a(h.mean(1))
""", "model(x, length)")  # fmt: skip
module("labels put by places", LAYER, """x, y
z = torch.zeros(len(x), 4)
z[torch.arange(len(x)), y] = 1.0
return self.a(x.mean(1)) * (1 + z)
""", "model(x, y)")  # fmt: skip
module("labels as one-hot rows", "self.a = nn.Linear(D + 4, 4)", """x, y
return self.a(torch.cat([x.mean(1), F.one_hot(y, 4).to(x)], 1))
""", "model(x, y)")  # fmt: skip
module("values put by a mask", LAYER, "x, pad\nh = self.a(x).clone()\nh[pad] = 0.0\nreturn h.mean(1)", "model(x, pad)")
module("loss inside, sum by len(x)", LAYER, """x, y
loss = F.cross_entropy(self.a(x.mean(1)), y, reduction="sum") / len(x)
self.every = F.cross_entropy(self.a(x[:, 0]), y, reduction="none")
return loss
""", "model(x, y)")  # fmt: skip
CELLS["loss inside, sum by len(x)"] = Cell(
    "loss inside, sum by len(x)",
    CELLS["loss inside, sum by len(x)"].setup,
    STEPS.format(call="").replace("F.cross_entropy(, y)", "model(x, y) + model.every.std()"),
)
module("a running mean in a buffer", LAYER + "\nself.register_buffer('m', torch.zeros(D))", """x
h = x.mean(1)
with torch.no_grad():
    self.m.mul_(0.9).add_(0.1 * h.mean(0))
return self.a(h)
""")  # fmt: skip
module("a mean copied, and one nearer", LAYER + "\nfor name in 'mn':\n    self.register_buffer(name, torch.zeros(D))", """x
with torch.no_grad():
    self.m.copy_(x.mean((0, 1)))
    self.n.lerp_(x.mean((0, 1)), 0.1)
return self.a(x.mean(1))
""")  # fmt: skip
module("BatchNorm1d between layers", "self.a = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))", """x
return self.a(x.mean(1))
""")  # fmt: skip
module("group and instance norm", "self.g, self.i, self.a = nn.GroupNorm(4, D), nn.InstanceNorm1d(D), nn.Linear(D, 4)", """x
return self.a(self.i(self.g(x.transpose(1, 2))).mean(2))
""")  # fmt: skip
module("einsum", "self.q, self.w = nn.Linear(D, D), nn.Parameter(torch.randn(D, 4))", """x
q = self.q(x)
a = torch.einsum('bid,bjd->bij', q, q).softmax(-1)
return torch.einsum('bij,bjd,dk->bik', a, x, self.w).mean(1)
""")  # fmt: skip
module("windows over time, and complex numbers", "self.a = nn.Linear(D * 3, 4)", """x
z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones(T, D // 2), torch.ones(T, D // 2))
return self.a(torch.view_as_real(z).flatten(2).unfold(1, 3, 1).flatten(2).mean(1))
""")  # fmt: skip
module("the rows are as many", LAYER, """x, pad
assert x.shape[0] == pad.shape[0] and x.shape[:2] == pad.shape and x.size(0) * 2 > 1
return self.a(x.masked_fill(pad[..., None], 0).mean(1))
""", "model(x, pad)")  # fmt: skip
module("experts by rows", "self.g = nn.Linear(D, 4)\nself.e = nn.ModuleList(nn.Linear(D, 4) for _ in range(4))", """x
h = x.mean(1)
best, out = self.g(h).argmax(1), h.new_zeros(len(h), 4)
for k, expert in enumerate(self.e):
    out[best == k] = expert(h[best == k])
return out
""")  # fmt: skip
module(
    "distances from prototypes",
    LAYER + "\nself.p = nn.Parameter(torch.randn(4, 4))",
    "x\nreturn -torch.cdist(self.a(x.mean(1)), self.p)",
)
function("straight-through by a function", """
    @staticmethod
    def forward(ctx, x):
        return x.sign()
    @staticmethod
    def backward(ctx, grad):
        return grad
""")  # fmt: skip
function("gradients reversed", """
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)
    @staticmethod
    def backward(ctx, grad):
        return -0.5 * grad
""")  # fmt: skip
function("a function that keeps its rows", """
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)
    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        return grad * (x > 0)
""")  # fmt: skip
CONVOLUTIONS = """
self.c = nn.ModuleList(nn.Conv1d(D, D, 3, padding=1) for _ in range(4))
self.n, self.a = nn.ModuleList(nn.BatchNorm1d(D) for _ in range(4)), nn.Linear(D, 4)
"""
CHAIN = """x
h = x.transpose(1, 2).clone()
for c, n in zip(self.c, self.n):
    h = n(c(F.relu(h, inplace=True)))
return self.a(h.mean(2))
"""
module("convolutions with BatchNorm, and shortcuts", CONVOLUTIONS, CHAIN.replace("h = n(", "h = h + n("))
module("convolutions after one another", CONVOLUTIONS, CHAIN.replace("c(F.relu(h, inplace=True))", "self.c[0](F.relu(c(h)))"))
module("one convolution, thrice", CONVOLUTIONS, CHAIN.replace("zip(self.c, self.n)", "zip([self.c[0]] * 3, self.n)"))
module("frozen convolutions", CONVOLUTIONS + "self.c[1].weight.requires_grad_(False)\nself.c[2].bias.requires_grad_(False)", CHAIN)
module("gradients of convolutions seen", CONVOLUTIONS + "self.c[1].weight.register_hook(lambda g: 2 * g.clamp(max=0.1))", CHAIN)
module("gradients changed in place", CONVOLUTIONS, """x
h = x.transpose(1, 2).clone()
for c, n in zip(self.c, self.n):
    h = h + n(c(h))
    if h.requires_grad:
        h.register_hook(lambda g: g.mul_(0.5))
return self.a(h.mean(2))
""")  # fmt: skip
module("convolutions of all kinds", """
self.c = nn.ModuleList([
    nn.Conv1d(D, 8, 3, padding="same"), nn.Conv1d(8, 12, 3, 2, groups=2, dilation=2), nn.Conv2d(3, 4, (1, 3), (2, 1), bias=False),
    nn.Conv3d(2, 2, 1), nn.ConvTranspose1d(8, 4, 2),
])
self.n = nn.ModuleList([nn.BatchNorm1d(D), nn.BatchNorm1d(12), nn.BatchNorm2d(4), nn.BatchNorm3d(2)])
""", """x
h = self.n[1](self.c[1](self.c[0](self.n[0](x.transpose(1, 2)))))
h = self.n[2](self.c[2](h.unflatten(1, (3, 4))))
h = self.n[3](self.c[3](h.unflatten(1, (2, 2)))).flatten(1, 3)
return self.c[4](h).mean(2)
""")  # fmt: skip
module("convolutions, a second backward pass", CONVOLUTIONS, CHAIN)
CELLS["convolutions, a second backward pass"] = Cell(
    "convolutions, a second backward pass",
    CELLS["convolutions, a second backward pass"].setup,
    STEPS.format(call="model(x)").replace("loss.backward()", "loss.backward(retain_graph=True)\n    (loss * loss).backward()"),
)
