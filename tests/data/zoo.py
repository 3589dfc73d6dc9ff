"""Notebook cells as plain text: a setup cell and a training cell each, as a person would write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

START = """
import copy, math, os, random
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.set_default_dtype(torch.float64)
torch.manual_seed(0); random.seed(0); np.random.seed(0)
"""


@dataclass(frozen=True)
class Cell:
    """tolerance: the largest difference from one process. split: whether its calls are split, or "whole"."""

    name: str
    setup: str
    train: str
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-12
    split: bool = True
    ignore: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        return START + self.setup


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
cell("mlp, adamw", ROWS + MLP + ADAMW, STEPS, tolerance=1e-9)
cell("cnn with batchnorm and dropout", IMAGES + CNN + SGD, STEPS)
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
