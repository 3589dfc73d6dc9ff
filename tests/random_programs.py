"""Programs put together at random: what keeps rows apart, and in most of them a line or two that mix them in some hidden way.

What they compute means nothing. A mode must give what one process gives, or refuse.
"""

from __future__ import annotations

import random

from tests.cells import Cell

D = 6  # the width; some batches have as many rows, so that sizes do not tell which dimension is which

MODULE = """
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, g): return g * 2
class Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x - x.mean(0)
    @staticmethod
    def backward(ctx, g): return g
class MixedBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 1.0
    @staticmethod
    def backward(ctx, g): return g - g.mean(0)
def column(t, x): return t.view(-1, *[1] * (x.dim() - 1))
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1, self.l2 = nn.Linear(D, D), nn.Linear(D, D)
        self.p, self.z = nn.Parameter(torch.randn(D)), nn.Parameter(torch.zeros(()))
        self.bn, self.ln, self.emb = nn.BatchNorm1d(D), nn.LayerNorm(D), nn.Embedding(20, D)
        self.att, self.att_first = nn.MultiheadAttention(D, 2, batch_first=True), nn.MultiheadAttention(D, 2)
        self.lstm, self.lstm_first = nn.LSTM(D, D, batch_first=True), nn.LSTM(D, D)
    def forward(self, x):
        B = x.shape[0]
{lines}
"""

APART = """
x = torch.tanh(x)
x = self.l1(x)
x = F.relu(x) + 0.1 * x
x = F.layer_norm(x, (D,))
x = x * torch.sigmoid(self.l2(x))
x = x.softmax(-1)
x = x + x.flip(-1)
x = x.roll(1, -1)
x = x - x.mean(-1, keepdim=True)
x = x.cumsum(-1) / D
x = torch.cat([x, x], -1)[..., :D]
x = torch.stack([x, 2 * x], -1).mean(-1)
x = x.unsqueeze(1).expand(-1, 3, *x.shape[1:]).sum(1) / 3
x = x[..., torch.tensor([1, 0, 2, 3, 5, 4])]
x = x.reshape(x.shape[0], -1).reshape(x.shape)
x = torch.where(x > 0, x, -x)
x = x.masked_fill(x > 1, 0.5)
x = torch.einsum('b...d,de->b...e', x, self.l1.weight)
x = F.dropout(x, 0.3, self.training)
x = x + torch.randn_like(x) * 0.1
x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-3)
x = x.sort(-1).values
x = x.topk(D, -1).values
x = torch.addcmul(x, x, x, value=0.1)
x = x.clone(); x[..., 0] = 0
x = x.abs().sqrt()
x = x.contiguous().view(len(x), -1).view(x.shape)
x = x.gather(-1, x.argsort(-1))
x = F.pad(x, (1, 1))[..., 1:-1]
x = F.softmax(self.l1(x), dim=-1) * x
x = x.to(torch.float64) * 1.5
x = x.chunk(2, -1)[0].repeat_interleave(2, -1)
x = x.movedim(0, -1).movedim(-1, 0)
x = torch.utils.checkpoint.checkpoint(self.l1, x, use_reentrant=False)
x = x + self.p
x = x @ self.l2.weight
x = Double.apply(x)
x = x * len(x) / len(x)
x = x.flatten(0, 1).unflatten(0, (-1, x.shape[1])) if x.dim() == 3 else x
x = F.gelu(x, approximate='tanh')
x = self.bn(x.flatten(0, -2)).view(x.shape)
x = self.ln(x)
x = x.amax(-1, keepdim=True) - x
x = x + self.emb(x.argmax(-1))
x = self.att(x, x, x)[0] if x.dim() == 3 else x
x = self.lstm(x)[0] if x.dim() == 3 else x
x = F.scaled_dot_product_attention(x, x, x) if x.dim() == 3 else x
x = torch.cat([t for t in x.unbind(-1)], -1).view(D, -1).T.reshape(x.shape) if x.dim() == 2 else x
x = torch.stack([row * 1.0 for row in x])
"""

MIXING = """
x = x - x.mean(0)
x = x.flip(0)
x = x.roll(1, 0)
x = x + x[:1]
x = x.softmax(0)
x = x.cumsum(0)
x = x * x.mean()
x = x / x.norm()
x = x.sort(0).values
x = x + x.std() * 0.1
x = x - x.amax(0)
x = torch.einsum('b...,c...->b...', x, x)
x = x[torch.arange(B).flip(0)]
x = x * column(torch.arange(B), x)
x = x * B
x = x + 0.1 * x.detach().mean(0)
x = x + x.roll(1, 0) - x.roll(1, 0).detach()
x = ((x.flatten(1) @ x.flatten(1).T).softmax(-1) @ x.flatten(1)).view(x.shape)
x = x + self.z * x.mean(0)
x = x + self.z * x.flip(0)
x = x.reshape(-1).roll(1).reshape(x.shape)
x = x.transpose(0, -1).reshape(x.shape)
x = x.clone(); x[0] = 0
x = x.clone(); x[:2] *= 2
x = F.normalize(x, dim=0)
x = x.view(2, -1, *x.shape[1:]).flip(0).view(x.shape) if B % 2 == 0 else x
x = x.index_add(0, torch.zeros(B, dtype=torch.long), x * 0.1)
x = x * (x > x.median()).double()
x = x + x.sum().sign()
x = x + (0.1 if B > 3 else 0.0)
x = torch.cat([x[1:], x[:1]])
x = x * column(torch.linspace(0, 1, B), x)
x = x - torch.logsumexp(x, 0)
x = x + x.argmax(0) * 0.01
x = x.cummax(0).values
x = torch.diff(x, dim=0, prepend=x[:1])
x = Mixed.apply(x)
x = MixedBack.apply(x)
x = x + x.unfold(0, 2, 1).sum(-1).mean(0) * 0.1
x = x + F.cosine_similarity(x, x.roll(1, 0), dim=-1).unsqueeze(-1)
x = x + x.contiguous().view(-1).flip(0).view_as(x) * 0.1
x.register_hook(lambda g: g - g.mean(0)) if x.requires_grad else None
x.register_hook(lambda g: g.flip(0)) if x.requires_grad else None
x = torch.utils.checkpoint.checkpoint(lambda t: t - t.mean(0), x, use_reentrant=False)
x = x + float(x.detach().mean())
x = x + torch.tensor(x.detach().tolist()).flip(0)
x = x * column(torch.ones(B).cumsum(0), x)
x = x + torch.full((B,), 1.0).sum()
x = x + x.new_zeros(x.shape).index_fill(0, torch.tensor([0]), 0.3)
x = x[torch.randperm(B)]
x = x * (torch.rand(1) + 0.5)
x = x + column(torch.rand(B).sort().values, x)
x = x.logcumsumexp(0)
x = x.scatter_reduce(0, torch.zeros_like(x, dtype=torch.long), x, 'amax')
x = F.batch_norm(x.flatten(0, -2), None, None, training=True).view(x.shape)
x = F.instance_norm(x.transpose(0, 1)).transpose(0, 1) if x.dim() == 3 else x - x.mean(0)
x = x.repeat(2, *[1] * (x.dim() - 1))[:B] + x.repeat_interleave(2, 0)[:B]
x = self.att_first(x, x, x)[0] if x.dim() == 3 else x
x = self.lstm_first(x)[0] if x.dim() == 3 else x
x = torch.stack([row * number for number, row in enumerate(x)])
x = x + sum(row.mean() for row in x) * 0.1
"""

ENDS = """
return x
return x.mean()
return x.sum()
return x, x.mean(0)
return {'a': x, 'n': B}
return (x ** 2).mean((0,))
return x.flatten(1).sum(1)
return F.mse_loss(x, torch.zeros_like(x))
return x.transpose(0, 1)
self.left = x.detach(); return x
self.seen = getattr(self, 'seen', 0) + B; return x
"""

TRAIN = """
outputs = []
for _ in range(3):
    opt.zero_grad()
    out = model(x)
    tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    outputs += [t.detach().clone() for t in tensors]
    loss = sum((t * (1 + torch.arange(t.numel()).view(t.shape) * 0.1)).mean() for t in tensors)
    if loss.requires_grad: loss.backward()
    opt.step()
"""

# When a line that mixes rows is come to: not in the first calls.
LATER = """
if self.at > 3: {line}
if self.at % 3 == 2: {line}
if self.at in (3, 5): {line}
if x.shape[0] > 6: {line}
if random.random() < 0.2: {line}
if not torch.is_grad_enabled(): {line}
if not self.training: {line}
y = x; {line}; x = y + max(0, self.at - 3) * (x - y)
y = x; {line}; x = torch.where(torch.tensor(self.at < 4), y, x)
"""

# Along which dimension a function works: d is the first one, that of the rows, when the other lines above would be come to.
TURNED = """
x = x - x.mean(d, keepdim=True)
x = x.flip(d)
x = x.roll(1, d)
x = x.softmax(d)
x = F.softmax(x, dim=d)
x = x.cumsum(dim=d)
x = x.sort(d).values
x = F.normalize(x, dim=d)
x = x - x.amax(dim=d, keepdim=True)
x = x.cummax(d).values
x = x + x.select(d, 0).unsqueeze(d)
x = x - (x[:1] if d == 0 else x[..., :1])
x = torch.cat([x, x], d).chunk(2, d)[0] + torch.cat(x.chunk(2, d)[::-1], d)
x = x + x.std(d, keepdim=True)
x = F.cosine_similarity(x, x.roll(1, -1), dim=d).unsqueeze(d) + x
"""

TRAIN_LATER = """
outputs = []
for at, n in enumerate((6, 6, 6, 5, 6, len(x), 5, len(x), 6)):
    model.at = at
    opt.zero_grad()
    out = model(x[:n])
    outputs.append(out.detach().clone())
    loss = (out * (1 + torch.arange(out.numel()).view(out.shape) * 0.1)).mean()
    if loss.requires_grad: loss.backward()
    opt.step()
    with torch.no_grad(): outputs.append(model(x[:n]).clone())
"""


def later(seed: int) -> Cell:
    """A program of that number in which rows meet later, if at all."""
    draw = random.Random(seed)
    apart, mixing, guards = (text.strip().splitlines() for text in (APART, MIXING, LATER))
    lines = draw.choices(apart, k=draw.randint(1, 4))
    guard = draw.choice(guards)
    if guard.startswith("if ") and draw.random() < 0.4:
        guard, line = "d = 0 " + guard.replace(": {line}", " else -1; {line}"), draw.choice(TURNED.strip().splitlines())
    else:
        line = draw.choice([line for line in mixing if " if " not in line and "def " not in line])
    lines.insert(draw.randint(0, len(lines)), guard.replace("{line}", line))
    return written(seed, draw, [*lines, "x = torch.tanh(x)", "return x"], TRAIN_LATER)


def program(seed: int) -> Cell:
    """The program of that number."""
    draw = random.Random(seed)
    apart, mixing, ends = (text.strip().splitlines() for text in (APART, MIXING, ENDS))
    lines = draw.choices(apart, k=draw.randint(1, 5))
    for likely in (0.6, 0.15):
        if draw.random() < likely:
            lines.insert(draw.randint(0, len(lines)), draw.choice(mixing))
    lines += ["x = torch.tanh(x)", draw.choice(ends)]  # within bounds: what explodes shows rounding only
    return written(seed, draw, lines, TRAIN)


def written(seed: int, draw: random.Random, lines: list[str], train: str) -> Cell:
    """The program whose model's forward is these lines."""
    shape = draw.choice([(6, D), (6, 4, D), (7, 4, D), (9, D), (12, 4, D)])
    setup = f"D = {D}\n" + MODULE.format(lines="\n".join(f"        {line}" for line in lines))
    setup += f"torch.manual_seed({seed})\nmodel = Model().train({draw.random() < 0.5})\nx = torch.randn{shape}\n"
    setup += "opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)\n"
    return Cell(str(seed), setup, train)
