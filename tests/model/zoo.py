"""Programs as people write them, as text: what the notebook has before the cell, and the cell."""

IMPORTS = """
import copy, io, math, random
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0); random.seed(0); np.random.seed(0)
"""

TRAIN = """
losses = []
for _ in range(4):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    losses.append(loss.item())
    print(f"{loss.item():.6f}")
"""

MLP = """
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
x, y = torch.randn(8, 16), torch.randint(10, (8,))
criterion = F.cross_entropy
"""

RESNET = """
class Block(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False); self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False); self.bn2 = nn.BatchNorm2d(o)
        self.short = nn.Sequential()
        if i != o or stride > 1: self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.short(x)
        return F.relu(y)

class ResNet(nn.Module):
    def __init__(self, w=4):
        super().__init__()
        self.stem = nn.Conv2d(3, w, 3, 1, 1, bias=False); self.bn = nn.BatchNorm2d(w)
        self.layer1 = nn.Sequential(Block(w, w), Block(w, w)); self.layer2 = nn.Sequential(Block(w, 2 * w, 2), Block(2 * w, 2 * w))
        self.fc = nn.Linear(2 * w, 10)
    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn(self.stem(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

model = ResNet()
x, y = torch.randn(6, 3, 8, 8), torch.randint(10, (6,))
criterion = F.cross_entropy
"""

ENCODER = """
class Encoder(nn.Module):
    def __init__(self, V=50, d=16, h=4, L=3, T=12, out=5):
        super().__init__()
        self.emb = nn.Embedding(V, d); self.pos = nn.Parameter(torch.randn(1, T, d) * .02)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, h, 2 * d, 0.1, batch_first=True), L)
        self.head = nn.Linear(d, out)
    def forward(self, ids):
        x = self.emb(ids) + self.pos[:, :ids.shape[1]]
        return self.head(self.enc(x).mean(1))

model = Encoder()
x, y = torch.randint(50, (6, 12)), torch.randint(5, (6,))
criterion = F.cross_entropy
"""

GPT = """
class Block(nn.Module):
    def __init__(self, d, h, p):
        super().__init__()
        self.ln1 = nn.LayerNorm(d); self.ln2 = nn.LayerNorm(d); self.qkv = nn.Linear(d, 3 * d); self.proj = nn.Linear(d, d)
        self.fc = nn.Linear(d, 4 * d); self.fc2 = nn.Linear(4 * d, d); self.h = h; self.drop = nn.Dropout(p)
    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(C, 2)
        q, k, v = (t.view(B, T, self.h, C // self.h).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.drop(self.proj(y))
        return x + self.drop(self.fc2(F.gelu(self.fc(self.ln2(x)))))

class GPT(nn.Module):
    def __init__(self, V=40, d=16, h=4, L=4, T=12, p=0.1):
        super().__init__()
        self.wte = nn.Embedding(V, d); self.wpe = nn.Embedding(T, d); self.drop = nn.Dropout(p)
        self.h = nn.ModuleList([Block(d, h, p) for _ in range(L)]); self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, V, bias=False); self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=.02)
    def forward(self, idx, targets=None):
        B, T = idx.shape
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(T, device=idx.device)))
        for block in self.h: x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))

model = GPT()
x, y = torch.randint(40, (6, 12)), torch.randint(40, (6, 12))
criterion = lambda out, y: F.cross_entropy(out[0].reshape(-1, 40), y.reshape(-1))
"""

LSTM = """
class LSTMNet(nn.Module):
    def __init__(self, V=30, d=8, hid=16, out=5):
        super().__init__()
        self.emb = nn.Embedding(V, d)
        self.l1 = nn.LSTM(d, hid, 2, batch_first=True, dropout=.2); self.l2 = nn.LSTM(hid, hid, batch_first=True)
        self.fc = nn.Linear(hid, out)
    def forward(self, x):
        x, (h, c) = self.l1(self.emb(x))
        x, _ = self.l2(x, (h[-1:], c[-1:]))
        return self.fc(x[:, -1])

model = LSTMNet()
x, y = torch.randint(30, (6, 9)), torch.randint(5, (6,))
criterion = F.cross_entropy
"""

UNET = """
def double(i, o):
    layers = [nn.Conv2d(i, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

class UNet(nn.Module):
    def __init__(self, w=4, out=2):
        super().__init__()
        self.d1, self.d2, self.d3 = double(3, w), double(w, 2 * w), double(2 * w, 4 * w)
        self.up2 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2); self.u2 = double(4 * w, 2 * w)
        self.up1 = nn.ConvTranspose2d(2 * w, w, 2, 2); self.u1 = double(2 * w, w); self.last = nn.Conv2d(w, out, 1)
    def forward(self, x):
        a = self.d1(x); b = self.d2(F.max_pool2d(a, 2)); c = self.d3(F.max_pool2d(b, 2))
        y = self.u2(torch.cat([self.up2(c), b], 1))
        y = self.u1(torch.cat([self.up1(y), a], 1))
        return self.last(y)

model = UNet()
x, y = torch.randn(4, 3, 8, 8), torch.randint(2, (4, 8, 8))
criterion = F.cross_entropy
"""

BRANCH = """
class Branch(nn.Module):
    def __init__(self, d=12):
        super().__init__()
        self.a = nn.Linear(d, d); self.b = nn.Linear(d, d); self.c = nn.Linear(d, d); self.o = nn.Linear(d, 5); self.calls = 0
    def forward(self, x):
        self.calls += 1
        x = torch.tanh(self.a(x))
        x = torch.relu(self.b(x)) if x.sum() > 0 else torch.sigmoid(self.c(x))
        return {"out": self.o(x), "calls": self.calls}

model = Branch()
x, y = torch.randn(6, 12), torch.randint(5, (6,))
criterion = lambda out, y: F.cross_entropy(out["out"], y)
"""

SGD = "\nopt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)\n"

MODELS = {"mlp": MLP, "resnet": RESNET, "encoder": ENCODER, "gpt": GPT, "lstm": LSTM, "unet": UNET, "branch": BRANCH}
ZOO = {name: (source + SGD, TRAIN) for name, source in MODELS.items()}

# Without what cannot be cut into micro-batches (dropout draws for the whole batch at once).
STILL = {
    "mlp": MLP,
    "encoder": ENCODER.replace("2 * d, 0.1,", "2 * d, 0.,"),
    "gpt": GPT.replace("GPT()", "GPT(p=0.)"),
    "lstm": LSTM.replace("dropout=.2", "dropout=0."),
}
MICRO = {name: (source + SGD, TRAIN) for name, source in STILL.items()}
