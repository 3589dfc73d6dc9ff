"""What is written to a view is written to what it shows, wherever its index or its shape came from, and whoever made it.

By name: lines of a training step that has `out = model(x)` and labels `t`, and what is made before the cell.
"""

from __future__ import annotations

from tests.cells import Cell

SETUP = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
    def forward(self, x): return self.b(torch.tanh(self.a(x)))
model = Net(); X, y = torch.randn(26, 6), torch.randint(0, 4, (26,))
opt = torch.optim.SGD(model.parameters(), lr=0.1); losses = []
"""
STEP = """
for x, t in zip(X.split(13), y.split(13)):
    out = model(x)
    loss = F.cross_entropy(out, t)
{lines}
    opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
"""
TABLE, ROW, SQUARE = "table = torch.ones(4, 3)", "row = torch.rand(1, 4)", "acc = torch.zeros(4, 4)"
STATISTICS = "rm, rv = torch.zeros(4), torch.ones(4)"
CASES = {
    "confusion matrix": ("for a, b in zip(t, out.argmax(1)): acc[a, b] += 1", SQUARE),
    "row by an index": ("row = table[out.argmax(1)[0]]\nrow += 1", TABLE),
    "row by an index, of another rank's value": (
        "h = torch.tanh(model.a(x)).detach()\nrow = h[out.argmax(1)[0]]\nrow.mul_(2)\n"
        "loss = loss + (h.sum() * out).mean()", "",
    ),
    "row by an index, emptied": ("table[out.argmax(1)[0]].zero_()", TABLE),
    "one of the rows": ("rows = table.unbind(0)\nrows[out.argmax(1)[0]].add_(1)", TABLE),
    "slice by a bound": ("part = acc[:out.argmax(1)[0] + 1]\npart += 1", SQUARE),
    "slice by a bound, assigned": ("acc[out.argmax(1)[0]:] = 1", SQUARE),
    "slice of another rank's value": ("h = torch.tanh(model.a(x))\nloss = loss + h[:, :out.argmax(1)[0] + 1].sum()", ""),
    "narrow": ("acc.narrow(0, out.argmax(1)[0], 1).add_(1)", SQUARE),
    "select": ("acc.select(0, out.argmax(1)[0]).add_(1)", SQUARE),
    "tensor_split": ("parts = torch.tensor_split(acc, out.argmax(1)[:1] + 1)\nparts[0].add_(1)", SQUARE),
    "topk": ("k = out.argmax(1)[0] + 1\nloss = loss + X.topk(k, dim=1).values.sum() * out.mean() + out.topk(k=k).values.sum()", ""),
    "repeat, view, expand": (
        "k = 2 + 0 * out.argmax(1)[0]\nloss = loss + out.repeat(k, 1).sum()\n"
        "loss = loss + out.view(-1, k)[0].sum() + out.expand(k, 13, 4).sum()", "",
    ),
    "expand_as": ("loss = loss + (row.expand_as(out) * out).mean()\nrow = row * 0.9", ROW),
    "view_as": ("v = acc.view_as(out)\nv += out.detach()", "acc = torch.zeros(52)"),
    "view_as of another rank's value": (
        "h = torch.tanh(model.a(x)).detach()[:, :4].clone()\nv = h.view_as(out)\nv.add_(1)\n"
        "loss = loss + (h * out).mean()", "",
    ),
    "reshape_as": ("v = acc.reshape_as(out)\nv += out.detach()", "acc = torch.zeros(52)"),
    "broadcast_tensors": ("p, q = torch.broadcast_tensors(row, out)\nloss = loss + (p * q).mean()\nrow = row + 0.1", ROW),
    "atleast_2d": ("p, q = torch.atleast_2d(acc, out)\np += 1\nloss = F.cross_entropy(q, t)", SQUARE),
    "meshgrid": (
        "p, q = torch.meshgrid(row[0], out[:, 0], indexing='ij')\nloss = loss + (p * q).mean()\nrow = row + 1", ROW,
    ),
    "to, with a graph": (
        "loss = loss + ((scale * 1).to(out) * out).sum()\n"
        "losses.append(torch.autograd.grad(loss, scale, retain_graph=True)[0].item())",
        "scale = torch.tensor(2.0, requires_grad=True)",
    ),
    "type_as, with a graph": (
        "loss = loss + (scale.float().type_as(out) * out).sum()\n"
        "loss.backward(retain_graph=True)\nlosses.append(scale.grad.item())",
        "scale = torch.tensor(2.0, requires_grad=True)",
    ),
    "to, which is the same": ("v = acc.to(out)\nv += 1\nlosses.append(float(v is acc))", SQUARE),
    "histogram": ("for k in out.argmax(1): row[0, k] += 1", ROW),
    "histogram at once": ("row[0].scatter_add_(0, out.argmax(1), torch.ones(13))", ROW),
    "queue and its pointer": (
        "queue[ptr:ptr + 13] = F.normalize(out.detach(), dim=1)\nptr = (ptr + 13) % 26", "queue = torch.zeros(26, 4); ptr = 0",
    ),
    "hard rows": ("w[out.detach().max(1).values < 0.3] *= 2\nloss = loss * w.mean()\nw = w.clone()", "w = torch.ones(13)"),
    "table of values": (
        "s = out.argmax(1)[0]\nrow[0, s] = row[0, s] + 0.5 * (out.detach()[0].max() - row[0, s])", ROW,
    ),
    "gradient of an index": (
        "loss = loss + table[out.argmax(1)[0]].sum()\n"
        "losses.append(torch.autograd.grad(loss, table, retain_graph=True)[0].tolist())",
        "table = torch.ones(4, 3, requires_grad=True)",
    ),
    "views of views": (
        "acc[0].add_(out.detach().mean())\nacc[1:3].copy_(out.detach()[:2])\nacc.view(-1)[3] = out.detach().max()\n"
        "v = acc.unflatten(0, (2, 2)).movedim(0, 1)\nv[0, 1] = out.detach()[0]\nacc.diagonal().add_(out.detach().mean())", SQUARE,
    ),
    "numpy's view": (
        "A = acc.numpy()\nA[0, 0] += out.detach()[0, 0].item()\nacc[0] += out.detach()[0]\nlosses.append(A.sum())", SQUARE,
    ),
    "data of another": ("acc.data += out.detach()[:4]\nq = acc.data\nq *= 2", SQUARE),
    "view left behind": ("h = torch.tanh(model.a(x)).detach()\nfirst = h[0]", ""),
    "batch_norm": ("loss = loss + F.cross_entropy(F.batch_norm(out, rm, rv, training=True), t)", STATISTICS),
    "batch_norm by keywords": ("F.batch_norm(out, running_mean=rm, running_var=rv, training=True)", STATISTICS),
    "torch.batch_norm": ("torch.batch_norm(out, None, None, rm, rv, True, 0.2, 1e-5, False)", STATISTICS),
    "batch_norm, evaluation": (
        "loss = loss + F.cross_entropy(F.batch_norm(out, rm, rv), t)\nrm = rm + out.detach().mean(0)", STATISTICS,
    ),
    "batch_norm, another rank's statistics": (
        "h = model.a(x).detach()[:, :4]\nrm, rv = h.mean(0), h.var(0)\no = F.batch_norm(out, rm, rv, training=True)\n"
        "loss = loss + (rm * o).mean()\nlosses.append(rm.tolist())", "",
    ),
    "instance_norm": ("loss = loss + F.instance_norm(out.view(13, 2, 2), rm[:2], rv[:2]).pow(3).mean()", STATISTICS),
    "embedding, max_norm": ("loss = loss + F.embedding(out.argmax(1), W, max_norm=1.0).mul(out).mean()", "W = torch.randn(4, 4)"),
    "embedding, max_norm, with a gradient": (
        "loss = loss + F.embedding(out.argmax(1), W, max_norm=1.0).mul(out).mean()\n"
        "losses.append(torch.autograd.grad(loss, W, retain_graph=True)[0].tolist())", "W = torch.randn(4, 4, requires_grad=True)",
    ),
}  # fmt: skip


PART = """
class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.seen, self.acc = nn.Linear(6, 4), [acc, torch.zeros(4)], acc
        self.register_buffer("n", torch.zeros(4))
    def forward(self, x): {forward}
acc = torch.zeros(4)
m = Part()
"""
OUTSIDE, GIVES_BACK = "neither an argument nor a buffer", "returns an argument, or a view of one"
# Of a module: its forward, the lines, and with which words it is called whole where rows are split.
OF_MODULES = {
    "gives a view of its argument": (
        "return x[:, :3], self.l(x.clone())", "z = x.clone()\np, o = m(z)\np.mul_(2)\n"
        "loss = loss + o.mean() + z.sum() * out.mean()", GIVES_BACK,
    ),
    "gives its argument": (
        "return x, self.l(x.clone())", "z = x.clone()\np, o = m(z)\np += 1\n"
        "loss = loss + o.mean() + z.sum() * out.mean()", GIVES_BACK,
    ),
    "gives a view of a buffer": ("return self.n[:2], self.l(x)", "b, o = m(x)\nb += 1\nloss = loss + (o * m.n).mean()", ""),
    "takes a tensor of the cell": ("return self.l(x) + self.acc", "loss = loss + m(x).mean()\nacc += 1", ""),
    "writes to a tensor of the cell": (
        "o = self.l(x); self.acc.add_(o.detach().mean(0)); return o", "loss = loss + (m(x) * acc).mean()", OUTSIDE,
    ),
    "writes to a tensor in its list": (
        "o = self.l(x); self.seen[1][0] += o.detach().sum(); return o", "loss = loss + (m(x) * m.seen[1]).mean()", OUTSIDE,
    ),
    "writes to its buffer": ("o = self.l(x); self.n += 1; return o", "loss = loss + (m(x) * m.n).mean()", ""),
    "writes to what it has made": (
        "o = self.l(x); z = torch.tensor([[0.]]) + o; z[:, 0] = 1; return z", "loss = loss + m(x).pow(2).mean()", "",
    ),
}  # fmt: skip


def _step(lines: str) -> str:
    return STEP.format(lines="\n".join(f"    {line}" for line in lines.splitlines()))


CELLS = {name: Cell(name, SETUP + before, _step(lines)) for name, (lines, before) in CASES.items()}
CELLS |= {name: Cell(name, SETUP + PART.format(forward=forward), _step(lines)) for name, (forward, lines, _) in OF_MODULES.items()}
WHOLE = {name: words for name, (*_, words) in OF_MODULES.items()}
