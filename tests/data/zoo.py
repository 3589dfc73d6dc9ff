"""Programs as people write them."""

from __future__ import annotations

from typing import Any

from tests.cells import Cell

CELLS: dict[str, Cell] = {}


def cell(name: str, setup: str, train: str, **more: Any) -> Cell:
    assert name not in CELLS, name
    CELLS[name] = made = Cell(name, setup, train, **more)
    return made


ROWS = """
X, y = torch.randn(13 * 5, 6), torch.randint(0, 4, (13 * 5,))
batches = [(X[i : i + 13], y[i : i + 13]) for i in range(0, len(X), 13)]
losses = []
"""
IMAGES = """
X, y = torch.randn(13 * 5, 3, 8, 8), torch.randint(0, 4, (13 * 5,))
batches = [(X[i : i + 13], y[i : i + 13]) for i in range(0, len(X), 13)]
losses = []
"""
SEQUENCES = """
X, y = torch.randn(13 * 5, 7, 6), torch.randint(0, 4, (13 * 5,))
batches = [(X[i : i + 13], y[i : i + 13]) for i in range(0, len(X), 13)]
losses = []
"""
TOKENS = """
X = torch.randint(0, 11, (13 * 5, 9))
batches = [(X[i : i + 13, :-1], X[i : i + 13, 1:]) for i in range(0, len(X), 13)]
losses = []
"""
SGD = "opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)\n"
ADAMW = "opt = torch.optim.AdamW(model.parameters(), lr=0.01)\n"
STEPS = """
for x, target in batches:
    opt.zero_grad()
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
"""
MLP = "model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))\n"
CNN = """
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3),
    nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
)
"""
RESNET = """
class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        nn.init.zeros_(self.bn2.weight)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if i != o else nn.Identity()

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(h)) + self.down(x), inplace=True)

class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

model = ResNet()
"""
ENCODER = """
class Encoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 16, dropout=dropout, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x).mean(1))

model = Encoder(0.1)
"""
GPT = """
class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(h.transpose(1, 2).reshape(b, t, d))

class Layer(nn.Module):
    def __init__(self, d, heads, dropout):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d), nn.Dropout(dropout))

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))

class GPT(nn.Module):
    def __init__(self, vocabulary=11, length=8, d=8, heads=2, layers=2, dropout=0.1):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.layers = nn.ModuleList(Layer(d, heads, dropout) for _ in range(layers))
        self.ln = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, idx, targets=None):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.ln(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), ignore_index=-1)

model = GPT()
"""
LSTM = """
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

model = Tagger()
"""

cell("mlp", ROWS + MLP + SGD, STEPS)
cell(
    "mlp, adamw",
    ROWS + MLP + ADAMW,
    STEPS,
    tolerance=1e-9,
    why="AdamW divides by the root of squared gradients",
)
cell("cnn with batchnorm and dropout", IMAGES + CNN + SGD, STEPS)
cell(
    "mlp with batchnorm", ROWS + """
model = nn.Sequential(
    nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4),
)
""" + SGD, STEPS,
)  # fmt: skip
cell(
    "table of numbers and categories, schedulers", ROWS + """
codes = torch.randint(0, 5, (13 * 5, 3))

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(5, 3) for _ in range(3))
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.Sequential(nn.Linear(15, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, codes, x):
        parts = [column(codes[:, i]) for i, column in enumerate(self.columns)]
        return self.body(torch.cat([*parts, self.norm(x)], dim=1))

model = Table()
""" + SGD + """
warm = torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=20)
slow = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
criterion = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))
best, kept = math.inf, None
""",
    """
for epoch in range(2):
    model.train()
    for at in torch.randperm(52).split(13):
        opt.zero_grad()
        loss = criterion(model(codes[at], X[at]), y[at])
        loss.backward()
        opt.step()
        warm.step()
    model.eval()
    with torch.no_grad():
        logits = model(codes[52:], X[52:])
        found, hits = criterion(logits, y[52:]).item(), (logits.argmax(1) == y[52:]).sum().item()
    slow.step(found)
    if found < best:
        best, kept = found, copy.deepcopy(model.state_dict())
    losses.append((loss.item(), found, hits, opt.param_groups[0]["lr"]))
    print(f"epoch {epoch}: {found:.6f}, {hits} of 13")
model.load_state_dict(kept)
""",
)  # fmt: skip
cell("resnet", IMAGES + RESNET + SGD, STEPS)
cell("transformer encoder", SEQUENCES + ENCODER + SGD, STEPS)
cell(
    "gpt, tied weights, loss inside", TOKENS + GPT + SGD,
    """
for x, target in batches:
    logits, loss = model(x, target)
    opt.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell("lstm, batch first", SEQUENCES + LSTM + SGD, STEPS)

UNET = """
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        def double(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1))
        self.down1, self.down2, self.up = double(3, 4), double(4, 8), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.join, self.out = double(8, 4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.up(self.down2(F.max_pool2d(a, 2)))
        return self.out(self.join(torch.cat([a, b], 1))).mean((2, 3))

model = UNet()
"""
cell("u-net", IMAGES + UNET + SGD, STEPS)
cell(
    "vae with reparametrisation", ROWS + """
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(6, 8), nn.Linear(4, 6)

    def reparametrise(self, mu, logvar):
        return mu + torch.randn_like(mu) * (0.5 * logvar).exp()

    def forward(self, x):
        mu, logvar = self.enc(x).chunk(2, dim=1)
        return self.dec(self.reparametrise(mu, logvar)), mu, logvar

model = VAE()
""" + SGD.replace("0.1", "0.01"),
    """
for x, _ in batches:
    out, mu, logvar = model(x)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    loss = F.mse_loss(out, x, reduction="sum") + kl
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "branch on its data", ROWS + """
class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if h.abs().sum() > 35.0:
            h = h * 0.5
        while h.norm() > 4:
            h = h / 2
        return self.b(h)

model = Branch()
""" + SGD, STEPS, split=False,
)  # fmt: skip
cell(
    "gan with two optimisers", ROWS + """
G = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
D = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1))
opt_g = torch.optim.SGD(G.parameters(), 0.05, momentum=0.9)
opt_d = torch.optim.SGD(D.parameters(), 0.05, momentum=0.9)
bce = nn.BCEWithLogitsLoss()
""",
    """
for real, _ in batches:
    n = real.size(0)
    fake = G(torch.randn(n, 3))
    opt_d.zero_grad()
    d_loss = bce(D(real), torch.ones(n, 1)) + bce(D(fake.detach()), torch.zeros(n, 1))
    d_loss.backward()
    opt_d.step()
    opt_g.zero_grad()
    g_loss = bce(D(fake), torch.ones(n, 1))
    g_loss.backward()
    opt_g.step()
    losses.append((d_loss.item(), g_loss.item()))
    print(f"D {d_loss.item():.6f} G {g_loss.item():.6f}")
""",
)  # fmt: skip
cell(
    "lbfgs", ROWS + MLP + "opt = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)\n",
    """
for x, target in batches:
    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        return loss
    losses.append(opt.step(closure).item())
""", tolerance=1e-8, why="a line search divides by differences of gradients",
)  # fmt: skip
cell(
    "gradient accumulation", ROWS + MLP + SGD,
    """
for step in range(5):
    opt.zero_grad()
    for x, target in batches[:3]:
        loss = F.cross_entropy(model(x), target) / 3
        loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "clipping", ROWS + MLP + SGD,
    """
for x, target in batches:
    opt.zero_grad()
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    opt.step()
    losses.append((loss.item(), norm.item()))
""",
)  # fmt: skip
cell(
    "hand-written L2 and update", ROWS + MLP,
    """
for x, target in batches:
    l2 = sum((p ** 2).sum() for p in model.parameters())
    loss = F.cross_entropy(model(x), target) + 0.01 * l2
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
            p.grad = None
    for p in model.parameters():
        p.data = p.data * 0.999
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "gradient penalty", ROWS + "model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))\n" + SGD,
    """
for x, _ in batches:
    x = x.clone().requires_grad_()
    out = model(x)
    g, = torch.autograd.grad(out.sum(), x, create_graph=True)
    loss = out.mean() + ((g.norm(dim=1) - 1) ** 2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append((loss.item(), x.grad.norm().item()))
""",
)  # fmt: skip
cell(
    "gradient penalty through batchnorm", IMAGES + """
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 1))
""" + SGD.replace("0.1", "0.01"),
    """
for x, _ in batches:
    x = x.clone().requires_grad_()
    out = model(x)
    g, = torch.autograd.grad(out.sum(), x, create_graph=True)
    loss = (out ** 2).mean() + (g ** 2).sum()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "double backward through weights (maml)", ROWS + MLP + SGD.replace("0.1", "0.01"),
    """
for x, target in batches:
    inner = F.cross_entropy(model(x), target)
    grads = torch.autograd.grad(inner, list(model.parameters()), create_graph=True)
    fast = {n: p - 0.1 * g for (n, p), g in zip(model.named_parameters(), grads)}
    outer = F.cross_entropy(torch.func.functional_call(model, fast, (x,)), target)
    loss = outer + sum((g ** 2).sum() for g in grads)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "sum loss",
    ROWS + MLP + SGD.replace("0.1", "0.005"),
    STEPS.replace("target)\n    loss.back", 'target, reduction="sum")\n    loss.back'),
)
cell("ignore_index", ROWS + "y[: 13 * 3 : 2] = -100\ny[26:30] = -100\n" + MLP + SGD, STEPS)
cell(
    "contrastive loss", ROWS + "model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))\n" + SGD,
    """
for x, _ in batches:
    a = F.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1)
    b = F.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1)
    loss = F.cross_entropy(a @ b.T / 0.1, torch.arange(len(x)))
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
EXPERTS = """
class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(4))
        self.never = nn.Linear(2, 2)

    def forward(self, x):
        out = x.new_zeros(len(x), 4)
        choice = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 1.2).long()
        for k in range(4):
            rows = (choice == k).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, self.experts[k](x[rows]))
        return out

model = Experts()
"""
cell("parameters used on some rows only", ROWS + EXPERTS + SGD, STEPS)
cell(
    "frozen, then unfrozen", ROWS + MLP + "model[0].requires_grad_(False)\n" + SGD,
    """
for step, (x, target) in enumerate(batches):
    if step == 3:
        model[0].requires_grad_(True)
    opt.zero_grad()
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "drawn noise and dropout", ROWS + """
class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(6, 9), nn.Linear(9, 4), nn.Dropout(0.4)

    def forward(self, x):
        h = self.a(x + 0.1 * torch.randn_like(x)) + torch.rand(x.shape[0], 1)
        w = self.b.weight + 0.01 * torch.randn_like(self.b.weight)
        h = self.drop(torch.relu(h)) * (0.5 + torch.bernoulli(torch.full_like(h, 0.7)))
        return F.linear(h, w, self.b.bias) + torch.normal(0.0, 0.01, (len(x), 4)) + torch.rand(())

model = Noisy()
""" + SGD, STEPS,
)  # fmt: skip
CHECKPOINTED = """
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.body = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.3)) for _ in range(2))
        self.head, self.reentrant = nn.Linear(6, 4), reentrant

    def forward(self, x):
        x = self.a(x)
        for layer in self.body:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head(x.mean(1))

"""
cell("activation checkpointing", SEQUENCES + CHECKPOINTED + "model = nn.Sequential(Checkpointed(False))\n" + SGD, STEPS)
cell("activation checkpointing, reentrant", SEQUENCES + CHECKPOINTED + "model = Checkpointed(True)\n" + SGD, STEPS)
cell(
    "checkpoint outside of the module", ROWS + """
from torch.utils.checkpoint import checkpoint
a, b = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 4)
""",
    """
for x, target in batches:
    loss = F.cross_entropy(b(checkpoint(a, x, use_reentrant=False)), target)
    loss.backward()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "state left on modules", ROWS + """
class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("running", torch.zeros(6))
        self.calls, self.last, self.aux = 0, None, None

    def forward(self, x):
        self.calls += 1
        h = torch.tanh(self.a(x - self.running))
        self.last = h
        self.aux = h.pow(2).mean()
        with torch.no_grad():
            self.running.mul_(0.9).add_(0.1 * x.mean(0))
        return self.b(h)

model = Stateful()
""" + SGD, STEPS.replace("target)\n", "target) + 0.5 * model.aux + 0.1 * model.last.std(0).sum()\n"),
)  # fmt: skip
LOADER = """
from torch.utils.data import DataLoader, TensorDataset
X, y = torch.randn(65, 6), torch.randint(0, 4, (65,))
losses = []
loader = DataLoader(TensorDataset(X, y), batch_size=13, shuffle=True, num_workers=WORKERS)
"""
LOADER_STEPS = STEPS.replace("batches", "loader").replace("x, target", "x, target")
cell("dataloader with shuffle", LOADER.replace("WORKERS", "0").replace("65", "60") + MLP + SGD, LOADER_STEPS)
cell("dataloader with workers", LOADER.replace("WORKERS", "2") + MLP + SGD, LOADER_STEPS)
cell(
    "evaluation that counts hits", ROWS + MLP + "model.eval()\n",
    """
hits = total = 0
with torch.no_grad():
    for x, target in batches:
        prediction = model(x).argmax(1)
        hits += (prediction == target).sum().item()
        total += len(target)
print(f"accuracy {hits / total:.4f}")
""",
)  # fmt: skip
EVALUATE = """
for part in parts:
    part.eval()
with torch.no_grad():
"""
PARTS = MLP + "parts = model, other = model, nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5))\n"
cell(
    "evaluation, rows concatenated", ROWS + PARTS,
    EVALUATE + """    outputs = torch.cat([model(x) for x, _ in batches])
    rows = [row.tolist() for x, _ in batches for row in other(x)]
print(outputs.shape, outputs.argmax(1).tolist())
""",
)  # fmt: skip
cell(
    "evaluation, outputs added", ROWS + PARTS,
    EVALUATE + """    outputs = [model(x) + other(x) for x, _ in batches]
    votes = sum(part(X).softmax(1).sum(0) for part in parts)
print(len(outputs), outputs[0].shape)
""",
)  # fmt: skip
cell(
    "evaluation, outputs averaged", ROWS + PARTS,
    EVALUATE + """    outputs = torch.stack([part(X) for part in parts]).mean(0)
    means = torch.stack([(model(x).mean(0) + other(x).mean(0)) / 2 for x, _ in batches])
    losses = [F.cross_entropy(model(x), target).item() for x, target in batches]
    mean = sum(losses) / len(losses)
print(f"{mean:.6f}", outputs.shape)
""",
)  # fmt: skip
cell(
    "evaluation in inference mode, sums kept", ROWS + PARTS,
    """
model.eval()
total, count = torch.zeros(4), 0
with torch.inference_mode():
    for x, target in batches:
        total += model(x).sum(0)
        count += len(x)
mean = (total / count).clone()
""",
)  # fmt: skip
cell(
    "raw leaf tensors (--batch)", ROWS + """
w, b = torch.randn(6, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
opt = torch.optim.SGD([w, b], lr=0.1, momentum=0.9)
""",
    """
for xb, yb in batches:
    loss = F.cross_entropy(xb @ w + b, yb)
    opt.zero_grad()
    loss.backward()
    opt.step()
""", options={"batch": ("xb", "yb")}, split=False, ignore=("loss", "xb", "yb"),
)  # fmt: skip
cell(
    "bfloat16 autocast", "torch.set_default_dtype(torch.float32)\n" + ROWS + MLP + SGD,
    """
for x, target in batches:
    opt.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
""", tolerance=2e-2, why="bfloat16 has 8 bits",
)  # fmt: skip
cell(
    "lstm, sequence first, hidden state carried", """
X, y = torch.randn(5, 7, 13, 6), torch.randint(0, 4, (5, 13))
losses = []
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, 2), nn.Linear(8, 4)

    def forward(self, x, hidden):
        out, hidden = self.lstm(x, hidden)
        return self.head(out[-1]), hidden

model = Tagger()
hidden = (torch.zeros(2, 13, 8), torch.zeros(2, 13, 8))
""" + SGD,
    """
for x, target in zip(X, y):
    opt.zero_grad()
    out, hidden = model(x, tuple(h.detach() for h in hidden))
    loss = F.cross_entropy(out, target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "lstm, sequence first, --batch-dim", SEQUENCES + "model = nn.LSTM(6, 4)\n" + SGD,
    """
for x, target in batches:
    opt.zero_grad()
    loss = F.cross_entropy(model(x.transpose(0, 1))[0][-1], target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
""", options={"batch_dim": 1},
)  # fmt: skip
cell(
    "word language model, (T·B, V) logits", """
ids = torch.randint(0, 11, (5, 7, 13))
losses = []
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.rnn, self.d, self.drop = nn.Embedding(11, 6), nn.GRU(6, 8), nn.Linear(8, 11), nn.Dropout(0.2)

    def forward(self, ids):
        h, _ = self.rnn(self.drop(self.e(ids)))
        return self.d(self.drop(h)).view(-1, 11)

model = Words()
""" + SGD,
    """
for x in ids:
    opt.zero_grad()
    loss = F.cross_entropy(model(x[:-1]), x[1:].reshape(-1))
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "per-row noise from numpy", ROWS + """
class Jitter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x):
        return self.a(x + torch.from_numpy(np.random.randn(len(x), 6)))

model = Jitter()
""" + SGD, STEPS, split=False,
)  # fmt: skip
cell(
    "masked mean, masks full at first", ROWS + """
masks = [torch.ones(13, 4, dtype=torch.bool) for _ in batches]
for mask in masks[1:]:
    mask[:7:2] = False
class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x, mask):
        e = self.a(x).pow(2)
        return (e * mask).sum() / mask.sum()

model = Masked()
""" + SGD.replace("0.1", "0.01"),
    """
for (x, _), mask in zip(batches, masks):
    loss = model(x, mask)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""", split=False,
)  # fmt: skip
cell(
    "fewer rows than ranks", ROWS + MLP + SGD,
    STEPS + """
for x, target in [(X[:1], y[:1]), (X[:2], y[:2]), (X[:3], y[:3])]:
    opt.zero_grad()
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "shared module, two losses, retained graph", ROWS + MLP + "head = nn.Linear(4, 2)\n" + SGD,
    """
for x, target in batches:
    out = model(x)
    a = F.cross_entropy(out, target)
    b = head(out).pow(2).mean()
    opt.zero_grad()
    a.backward(retain_graph=True)
    b.backward()
    opt.step()
    losses.append((a.item(), b.item()))
""",
)  # fmt: skip
cell(
    "split function", ROWS + """
import nbpar
w = torch.randn(6, 4, requires_grad=True)
opt = torch.optim.SGD([w], lr=0.1, momentum=0.9)

@nbpar.split
def scores(x):
    return F.dropout(torch.tanh(x @ w), 0.2)
""",
    """
for x, target in batches:
    loss = F.cross_entropy(scores(x), target)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell("central", ROWS + MLP + SGD, STEPS, options={"aggregate": "central"})
LOCAL = ("x", "target", "loss", "losses")
cell(
    "--batch, with batchnorm, dropout not", IMAGES + CNN.replace("nn.Dropout(0.3), ", "").replace("nn.Dropout(0.3),", "") + SGD,
    STEPS, options={"batch": ("x", "target")}, split=False, ignore=LOCAL,
)  # fmt: skip
cell("--loss local, dataloader", LOADER.replace("WORKERS", "0").replace("65", "60") + "y[::3] = -100\n" + MLP + SGD, LOADER_STEPS,
     options={"loss": "local"}, split=False, ignore=LOCAL)  # fmt: skip
cell(
    "--loss local, accumulation and clipping", LOADER.replace("WORKERS", "0") + MLP + SGD,
    """
for step, (x, target) in enumerate(loader):
    loss = F.cross_entropy(model(x), target) / 2
    loss.backward()
    if step % 2:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        opt.step()
        opt.zero_grad()
""", options={"loss": "local"}, split=False, ignore=LOCAL,
)  # fmt: skip

# Outputs so large that they are gathered only when they are looked at
LARGE = """
losses, hits, kept = [], 0, []
ids = [torch.randint(0, 2000, (13, 9)) for _ in range(5)]
class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.d = nn.Embedding(2000, 8), nn.Linear(8, 2000)

    def forward(self, ids):
        return self.d(torch.tanh(self.e(ids)))

model = Large()
"""
cell(
    "large logits, only the loss", LARGE + SGD.replace("0.1", "0.01"),
    """
for x in ids:
    logits = model(x[:, :-1])
    target = x[:, 1:].clone()
    target[:5, :3] = -100
    loss = F.cross_entropy(logits.view(-1, logits.size(-1)), target.reshape(-1), label_smoothing=0.1)
    loss = loss + 0.1 * F.cross_entropy(logits[:, :-1].reshape(-1, 2000), target[:, 1:].reshape(-1), reduction="sum")
    loss = loss + nn.CrossEntropyLoss(reduction="none")(logits.double().transpose(1, 2), target).std() * 0.01
    hits += (logits.argmax(-1) == target).sum().item()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
cell(
    "large logits, looked at", LARGE + SGD,
    """
for step, x in enumerate(ids):
    logits = model(x[:, :-1])
    flat = logits.view(-1, 2000)
    loss = F.cross_entropy(flat, x[:, 1:].reshape(-1)) + 0.01 * (logits ** 2).mean() + 0.01 * flat.softmax(-1).std()
    if step == 2:
        logits = logits.detach().clone()
        logits[:, 0] = 0.0
        kept.append(flat)
        print(float(flat.sum()), logits.shape)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
    if step > 2:
        kept.append(logits)
""",
)  # fmt: skip
cell(
    "large activations from one module into the next", """
losses = []
x = torch.randn(13, 100)
a = nn.Sequential(nn.Linear(100, 12000), nn.Tanh())
b = nn.Sequential(nn.Linear(12000, 3), nn.Dropout(0.1))
opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.01, momentum=0.9)
""",
    """
for step in range(5):
    h = a(x)
    loss = b(h).pow(2).mean() + (0.1 * h.pow(2).mean() if step == 3 else 0.0)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
""",
)  # fmt: skip
