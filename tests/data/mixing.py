"""Modules whose rows depend on one another, most of them so that few or first values do not show it. Each is a cell."""

from __future__ import annotations

from tests.cells import Cell

ROWS = """
X, y = torch.randn(3 * 64, 6), torch.randint(0, 4, (3 * 64,))
batches = [(X[i : i + 64], y[i : i + 64]) for i in range(0, len(X), 64)]
losses = []
"""
STEPS = """
for x, target in batches:
    opt.zero_grad()
    loss = F.cross_entropy(model(x), target) + getattr(model, "kept", 0)
    loss.backward()
    opt.step()
    losses.append(loss.item())
"""
OPTIMISER = "model = M()\nopt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)\n"
BODY = """
    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate = nn.Linear(6, 8), nn.Linear(8, 4), nn.Parameter(torch.zeros(8))
        self.bn, self.attention = nn.BatchNorm1d(8), nn.MultiheadAttention(8, 2)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3))
        self.register_buffer("running", torch.zeros(8))
        self.kept = torch.zeros(())
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
"""

# What becomes of the hidden rows `h`, before a last layer.
WAYS = {
    "straight-through, a soft part over the batch": "h.sign() + (h - h.mean(0)) - (h - h.mean(0)).detach()",
    "straight-through by data, a soft part over the batch": "(h - h.mean(0)) + (h.sign() - (h - h.mean(0))).data",
    "zero gate around attention over the batch": "h + self.gate * (torch.softmax(h @ h.t(), 1) @ h)",
    "tiny gate around a mean over the batch": "h + 1e-9 * h.mean(0) + self.gate.exp().sub(1) * h.mean(0)",
    "greatest value of the batch": "h / h.abs().max()",
    "norm of the batch, clipped": "h * (40 / h.norm()).clamp(max=1.0)",
    "roll over rows": "h + self.gate * h.roll(1, 0)",
    "rows reversed": "h + self.gate * h.flip(0)",
    "cumulative sum over rows": "h + self.gate * h.cumsum(0)",
    "first rows otherwise": "torch.cat([h[:8] * 2, h[8:]])",
    "first rows otherwise behind a gate": "h + self.gate * torch.cat([h[:8] * 2, h[8:]])",
    "large batches otherwise behind a gate": "h + self.gate * (h if h.shape[0] < 50 else h - h.mean(0))",
    "first hundred rows otherwise": "torch.cat([h[:50] * 2, h[50:]])",
    "ghost batch norm by chunks": "torch.cat([self.bn(p) for p in h.chunk(math.ceil(h.shape[0] / 40))])",
    "ghost batch norm by splits": "torch.cat([self.bn(p) for p in h.split(48)])",
    "ghost batch norm for large batches": "self.bn(h) if h.size(0) < 50 else torch.cat([self.bn(p) for p in h.chunk(2)])",
    "ghost batch norm for long batches": "self.bn(h) if len(h) < 50 else torch.cat([self.bn(p) for p in h.chunk(2)])",
    "ghost batch norm for many numbers": "self.bn(h) if h.numel() < 400 else torch.cat([self.bn(p) for p in h.chunk(2)])",
    "pairs of rows": "h + self.gate * h.view(-1, 2, 8).flip(1).reshape(h.shape)",
    "halves of the batch": "h + self.gate * torch.cat(h.chunk(2)[::-1])",
    "in-batch negatives": "torch.cat([h[:, :4], (h @ h.t()).logsumexp(1, keepdim=True).expand(-1, 4)], 1)",
    "best rows": "h * (h.sum(1) >= h.sum(1).topk(min(20, h.shape[0])).values[-1])[:, None]",
    "a view of another order": "h + self.gate * h[:, None].expand(-1, 8, 8).reshape(-1, 8).view(8, -1, 8).mean(0)",
    "number of rows as a tensor": "h + self.gate * h / torch.tensor(h.shape[0])",
    "number of rows as a number": "h + self.gate * h * h.shape[0]",
    "place in the batch": "h + self.gate * torch.arange(h.shape[0])[:, None]",
    "gumbel, straight-through": "h * F.gumbel_softmax(h - h.mean(0), hard=True)",
    "gradient normalised over the batch": "Normed.apply(h)",
    "hook that divides by the batch's gradient": "hooked(h)",
    "hook on a node": "on_node(h)",
    "saved values scaled by the batch": "packed(h)",
    "batch of other moments": "F.batch_norm(h, None, None, training=True) if h.shape[0] > 40 else h - h.mean(0)",
    "statistics over the batch, detached": "(h - h.mean(0).detach()) * (1 + self.gate)",
    "a mean that is used again": "h + self.gate * h.mean()",
    "rows shuffled": "h + self.gate * h[torch.randperm(h.shape[0])]",
    "rows by an index": "h + self.gate * h[torch.arange(h.shape[0]).flip(0)]",
    "rows sorted": "h + self.gate * h.sort(0).values",
    "attention that takes rows for time": "h + self.gate * self.attention(h[:, None], h[:, None], h[:, None])[0][:, 0]",
    "fused attention over rows": "h + self.gate * F.scaled_dot_product_attention(h[None], h[None], h[None])[0]",
    "convolution over rows": "h + self.gate * F.conv1d(h.t()[None], self.kernel, padding=1)[0].t()",
    "pooling over rows": "h + self.gate * F.avg_pool1d(h.t()[None], 3, 1, 1)[0].t()",
    "layer norm over rows": "h + self.gate * F.layer_norm(h.t(), (h.shape[0],)).t()",
    "a view kept from before of a running mean": "running_mean_kept(self, h)",
    "a mean written by `out`": "written(self, h)",
    "a sum by the number of rows, a view of it": "kept(self, h, divided(h))",
    "places of some rows": "h + self.gate * torch.cat([h, h], 1).view(-1, 8)[torch.arange(h.shape[0])]",
    "places of rows by a mask": "h + self.gate * h[:, None].expand(-1, 2, -1)[torch.arange(len(h)), torch.arange(len(h)) % 2]",
    "places of rows, modulo": "h + self.gate * h[torch.arange(len(h)) // 2]",
    "rows by number and by columns": "h if h.shape[1] + h.shape[0] < 50 else h - h.mean(0)",
    "rows by a power of their number": "h if h.shape[0] * h.shape[0] < 700 * h.shape[0] // 20 else h - h.mean(0)",
    "rows by a part of their number": "h if len(h) * 8 // 4 < 100 else h - h.mean(0)",
    "rows by a table of numbers": "h - {64: h.mean(0)}.get(len(h), 0)",
    "rows by a set of numbers": "h - h.mean(0) if len(h) in {32, 64} else h",
    "rows repeated": "h + self.gate * h.repeat(2, 1)[:len(h)]",
    "rows repeated, by pairs": "h + self.gate * h.repeat(2, 1).view(2, -1, 8).mean(0).view(-1, 2, 8).flip(1).flatten(0, 1)",
    "windows over rows": "h + self.gate * F.pad(h, (0, 0, 1, 1)).unfold(0, 3, 1).mean(-1)",
    "instance norm over rows": "h + self.gate * F.instance_norm(h.t()[None])[0].t()",
    "a mask of other rows": "masked(self, h, (h[:, 0] > 0).flip(0))",
    "a number made of rows where a mask is on": "masked(self, h, h[:, 0] > 0, h.mean())",
    "classes of the batch": "h + self.gate * F.one_hot(h.argmax(1), 8).to(h).mean(0)",
    "softmax over rows": "h + self.gate * h.softmax(0)",
    "rows by einsum": "h + self.gate * torch.einsum('bd,cd,ce->be', h, h, h)",
    "rows added into one": "h + self.gate * torch.zeros_like(h).index_add(0, torch.zeros(h.shape[0], dtype=torch.long), h)",
    "rows added by scatter": "h + self.gate * torch.zeros_like(h).scatter_add(0, (h > 0).long(), h)",
    "a running mean seen by a view": "running(self, h)",
    "a running mean": "h - running_mean(self, h)",
    "a power of a mean is kept": "kept(self, h, h.mean() ** 2)",
    "a mean by a mean is kept": "kept(self, h, h.pow(2).mean() / h.abs().mean())",
    "sums and means are kept": "kept(self, h, h.sum() + h.mean())",
    "a sum and a constant is kept": "kept(self, h, h.sum() + 1)",
    "a mean of some rows is kept": "kept(self, h, (h * (h[:, :1] > 0)).sum() / (h[:, 0] > 0).sum())",
    "a mean over all but the first rows is kept": "kept(self, h, h[8:].mean())",
    "experts with a fixed capacity": "experts(self, h)",
    "checkpointed, over the batch": "h + self.gate * checkpoint(lambda h: h - h.mean(0), h, use_reentrant=False)",
    "checkpointed, another backward pass": "checkpoint(Normed.apply, h, use_reentrant=False)",
    "checkpointed, another backward pass, reentrant": "checkpoint(Normed.apply, h, use_reentrant=True)",
    "checkpointed, another run again": "checkpoint(otherwise, h, use_reentrant=False, context_fn=lambda: (nullcontext(), Again()))",
}
HELPERS = """
from contextlib import nullcontext
from torch.utils.checkpoint import checkpoint

class Again:
    on = False
    def __enter__(self):
        Again.on = True
    def __exit__(self, *error):
        Again.on = False

def otherwise(h):
    return torch.tanh(h - h.mean(0) if Again.on else h)

class Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h * 1
    @staticmethod
    def backward(ctx, grad):
        return grad / grad.norm()

def hooked(h):
    h = h * 1
    h.register_hook(lambda grad: grad / grad.norm())
    return h

def on_node(h):
    h = h * 1
    h.grad_fn.register_prehook(lambda grads: (grads[0] / grads[0].norm(),))
    return h

def packed(h):
    def pack(t):
        return t, t.abs().max()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda p: (p[0] / p[1] * 15).round() * p[1] / 15):
        return torch.tanh(h * h)

def running(self, h):
    view = self.running.view(-1)
    self.running.add_(h.detach().mean(0))
    return h - self.gate * view

def running_mean_kept(self, h):
    if not hasattr(self, "view"):
        self.view = self.running.view(-1)
    self.running.add_(h.detach().mean(0))
    return h - self.view

def written(self, h):
    made = torch.zeros(8)
    view = made.view(-1)
    torch.mean(h.detach(), 0, out=made)
    return h - self.gate * view

def divided(h):
    total = h.sum()
    view = total.view(1)
    total = total / len(h)
    return view.sum() + 0 * total

def masked(self, h, mask, value=0.0):
    other = h.clone()
    other[mask] = value
    return h + self.gate * other

def running_mean(self, h):
    self.running.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return self.running

def kept(self, h, number):
    self.kept = number
    return h

def experts(self, h):
    choice = h[:, :4].argmax(1)
    place = F.one_hot(choice, 4).cumsum(0).gather(1, choice[:, None]) - 1
    kept = (place < 10).to(h)
    every = torch.stack([e(h) for e in self.experts], 1)
    return h + kept * every.gather(1, choice[:, None, None].expand(-1, 1, 8)).squeeze(1)
"""


def cell(name: str, way: str) -> Cell:
    forward = f"    def forward(self, x):\n        h = torch.tanh(self.a(x))\n        return self.b({way})\n"
    return Cell(name, ROWS + HELPERS + "class M(nn.Module):" + BODY + forward + OPTIMISER, STEPS)


# Whole programs.
PROGRAMS = {
    "a single row otherwise": (
        "X, y = X[:67], y[:67]\nbatches = [(X[:64], y[:64]), (X[64:], y[64:])]\nclass M(nn.Module):" + BODY + """
    def forward(self, x):
        h = self.a(x)
        return self.b(h if h.shape[0] > 1 else -h)
""" + OPTIMISER, STEPS,
    ),
    "a layer of zeros over mixed rows": (
        "class M(nn.Module):" + BODY + """
        nn.init.zeros_(self.b.weight)
    def forward(self, x):
        h = self.a(x)
        return self.b(h - h.mean(0))
""" + OPTIMISER, STEPS,
    ),
    "vq-vae": ("""
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.codes = nn.Linear(6, 8), nn.Linear(8, 4), nn.Embedding(16, 8)
    def forward(self, x):
        z = self.a(x)
        nearest = torch.cdist(z, self.codes.weight).argmin(1)
        e = self.codes(nearest)
        self.loss = F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())
        return self.b(z + (e - z).detach())
""" + OPTIMISER, STEPS.replace("target) +", "target) + model.loss +")),
    "autocast, rows rolled behind a gate": ("""
torch.set_default_dtype(torch.float32)
batches = [(x.float(), target) for x, target in batches]
class M(nn.Module):""" + BODY + """
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.a(x)
            return self.b(h + self.gate * h.roll(1, 0))
""" + OPTIMISER, STEPS.replace("loss = F", "with torch.autocast('cpu', dtype=torch.bfloat16):\n        loss = F")),
    "a function, rows rolled": ("""
import nbpar
a, b = torch.randn(6, 8, requires_grad=True), torch.randn(8, 4, requires_grad=True)
opt = torch.optim.SGD([a, b], lr=0.1)
@nbpar.split
def model(x):
    h = torch.tanh(x @ a)
    return (h + 0.01 * h.roll(1, 0)) @ b
""", STEPS),
    "words counted in the batch": ("""
words = torch.randint(0, 20, (64, 5))
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.b = nn.Embedding(20, 8, scale_grad_by_freq=True), nn.Linear(8, 4)
    def forward(self, x):
        return self.b(self.e(x).mean(1))
""" + OPTIMISER, STEPS.replace("model(x)", "model(words)")),
    "dropout scaled by its mask": ("""
masks = [torch.ones(64, 8), *(torch.rand(64, 8).round() for _ in batches)]
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
    def forward(self, x, mask):
        return self.b(self.a(x) * mask / mask.mean())
""" + OPTIMISER, STEPS.replace("model(x)", "model(x, masks[len(losses)])")),
    "pads counted in the batch": ("""
words = [torch.randint(1, 20, (64, 5)), *(torch.randint(0, 20, (64, 5)) for _ in batches)]
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.b = nn.Embedding(20, 8), nn.Linear(8, 4)
    def forward(self, x):
        mask = (x != 0).double()
        return self.b((self.e(x) * mask[..., None]).mean(1) / mask.mean())
""" + OPTIMISER, STEPS.replace("model(x)", "model(words[len(losses)])")),
    "time before rows, behind zeros": ("""
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 4)
        nn.init.zeros_(self.a.weight)
    def forward(self, x):
        return self.a(x.transpose(0, 1)).reshape(-1, 4)
""" + OPTIMISER, STEPS.replace("model(x), target", "model(x.view(-1, 1, 6) * torch.ones(1, 3, 1)), target.repeat(3)")),
}  # fmt: skip
CELLS: dict[str, Cell] = {name: cell(name, way) for name, way in WAYS.items()}
CELLS |= {name: Cell(name, ROWS + setup, train) for name, (setup, train) in PROGRAMS.items()}
