"""Small program styles that naive splitting breaks. Each is a cell; importing this module adds them to the zoo."""

from __future__ import annotations

from typing import Any

from tests.data.zoo import cell

SETUP = """
import dataclasses
x = torch.randn(13, 5)
y = torch.arange(13) % 3

def mlp(out=3):
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, out))
"""
SIMPLE = "m = mlp()\n"


def style(name: str, setup: str, train: str, **more: Any) -> None:
    cell("style: " + name, SETUP + setup, train, **more)


def loss(name: str, criterion: str, *arguments: str, **more: Any) -> None:
    target = ", ".join(("m(x)", *arguments))
    style(name, SIMPLE + f"criterion = {criterion}\n", f"loss = criterion({target})\nloss.backward()", **more)


def module(name: str, body: str, train: str, **more: Any) -> None:
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    style(name, f"class M(nn.Module):\n{lines}\nm = M()\n", train, **more)


INIT = """
def __init__(self):
    super().__init__()
    self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
"""
BACKWARD = "loss = F.cross_entropy(m(x), y)\nloss.backward()"

loss("CrossEntropyLoss", "nn.CrossEntropyLoss()", "y")
loss("CrossEntropyLoss, weights", "nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))", "y")
style("CrossEntropyLoss, ignored", SIMPLE + "y[:3] = -100\nc = nn.CrossEntropyLoss()\n", "loss = c(m(x), y)\nloss.backward()")
style(
    "CrossEntropyLoss, ignored later", SIMPLE + "c = nn.CrossEntropyLoss()\n",
    """
for k in range(2):
    z = y.clone()
    z[: 3 * k] = -100
    loss = c(m(x), z)
    loss.backward()
""",
)  # fmt: skip
loss("CrossEntropyLoss, sum", "nn.CrossEntropyLoss(reduction='sum')", "y")
loss("MSELoss", "nn.MSELoss()", "torch.ones(13, 3)")
style("KLDivLoss, batchmean", SIMPLE, "nn.KLDivLoss(reduction='batchmean')(m(x).log_softmax(1), torch.rand(13, 3)).backward()")
style("KLDivLoss, mean", SIMPLE, "nn.KLDivLoss(reduction='mean')(m(x).log_softmax(1), torch.rand(13, 3)).backward()")
style("TripletMarginLoss", SIMPLE, "loss = nn.TripletMarginLoss()(m(x), m(x * 0.9), m(x.flip(0)))\nloss.backward()")
style(
    "CosineEmbeddingLoss", SIMPLE,
    "loss = nn.CosineEmbeddingLoss()(m(x), m(x * 0.9), (y - 1).sign() + (y == 1))\nloss.backward()",
)  # fmt: skip
style(
    "loss as a module", SIMPLE + """
class RMSE(nn.Module):
    def forward(self, a, b):
        return (a - b).pow(2).mean().sqrt()
rmse = RMSE()
""", "loss = rmse(m(x), torch.ones(13, 3))\nloss.backward()",
)  # fmt: skip

RETURNS = {
    "dict": '{"loss": l, "logits": o, "past": None}',
    "tuple": "(l, o, None, [o * 2])",
    "dataclass": "Output(l, o)",
}
TAKES = {"dict": 'o["loss"], o["logits"]', "tuple": "o[0], o[1]", "dataclass": "o.loss, o.logits"}
for returns, ignored, later in [
    ("dict", False, False), ("tuple", False, False), ("dataclass", False, False), ("dict", True, False), ("dict", True, True),
]:  # fmt: skip
    style(
        f"loss inside, {returns}" + (", ignored" if ignored else "") + (" later" if later else ""),
        f"""
@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = mlp()

    def forward(self, x, labels=None):
        o = self.m(x)
        l = F.cross_entropy(o, labels, ignore_index=-100) if labels is not None else None
        return {RETURNS[returns]}

m = M()
""",
        f"""
for k in range({2 if later else 1}):
    z = y.clone()
    if {ignored} and (k or not {later}):
        z[:3] = -100
    o = m(x, labels=z)
    loss, logits = {TAKES[returns]}
    (loss + logits.mean() * 0.1).backward()
""",
        ignore=("o",),
    )
module("auxiliary loss as an attribute", INIT + """
def forward(self, x):
    h = torch.tanh(self.a(x))
    self.aux = h.pow(2).mean()
    return self.b(h)
""", "loss = F.cross_entropy(m(x), y) + 0.5 * m.aux\nloss.backward()")  # fmt: skip
module("last attention as an attribute", INIT + """
def forward(self, x):
    self.last = self.a(x)
    return self.b(self.last.tanh())
""", BACKWARD)  # fmt: skip
module("counter in forward", INIT + """
n = 0
def forward(self, x):
    self.n += 1
    self.__dict__.setdefault("history", []).append(self.n)
    return self.b(self.a(x)) * self.n
""", BACKWARD + "\nloss = F.cross_entropy(m(x), y)")  # fmt: skip
module("list of activations in the module", INIT + """
def forward(self, x):
    h = self.a(x)
    self.__dict__.setdefault("acts", []).append(h)
    return self.b(h)
""", BACKWARD, split=False)  # fmt: skip
module("hand-made running mean", INIT + """
    self.register_buffer("rm", torch.zeros(5))
def forward(self, x):
    o = self.b(self.a(x - self.rm))
    with torch.no_grad():
        self.rm.mul_(0.9).add_(0.1 * x.mean(0))
    return o
""", f"for _ in range(2):\n    {BACKWARD.splitlines()[0]}\n    loss.backward()")  # fmt: skip
HOOK = "acts.append(o.detach())"
style(
    "forward hook, inner",
    SIMPLE + f"acts = []\nhandle = m[0].register_forward_hook(lambda mod, i, o: {HOOK})\n",
    BACKWARD,
    split=False,
)
style(
    "forward hook, outer",
    SIMPLE + f"acts = []\nhandle = m.register_forward_hook(lambda mod, i, o: {HOOK})\n",
    BACKWARD,
    split=False,
)
style(
    "full backward hook, inner",
    SIMPLE + "gs = []\nhandle = m[0].register_full_backward_hook(lambda mod, gi, go: gs.append(go[0].detach().clone()) or None)\n",
    BACKWARD, split=False,
)  # fmt: skip
module("in place on its input", INIT + """
def forward(self, x):
    x.mul_(2)
    return self.b(self.a(x))
""", "z = x.clone()\nloss = F.cross_entropy(m(z), y)\nloss.backward()", split=False)  # fmt: skip
style("in-place activation, outermost", "", "z = x.clone()\nnn.ReLU(inplace=True)(z)", split=False)
style("in place on its output", SIMPLE, "o = m(x)\no.mul_(2)\nF.cross_entropy(o, y).backward()")
module("mixing rows behind a layer of zeros", INIT + """
    nn.init.zeros_(self.b.weight)
    nn.init.zeros_(self.b.bias)
def forward(self, x):
    h = self.a(x)
    return self.b(torch.tanh(h - h.mean(0)))
""", """
opt = torch.optim.SGD(m.parameters(), 1.0)
for _ in range(3):
    loss = F.cross_entropy(m(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
""", split=False)  # fmt: skip
module("branch taken later", INIT + """
def forward(self, x):
    h = self.b(self.a(x))
    return h * 2 if x.max() > 3.5 else h
""", """
for z in (x, torch.cat([x[:-1], x[-1:] + 5])):
    loss = F.cross_entropy(m(z), y)
    loss.backward()
""", split=False)  # fmt: skip
module("as many classes as rows", """
def __init__(self):
    super().__init__()
    self.a = nn.Linear(5, 13)
def forward(self, x, weights):
    return self.a(x) * weights
""", "F.cross_entropy(m(x, torch.arange(13.0) + 1), y).backward()")  # fmt: skip
style(
    "as many time steps as rows, with a mask",
    """
layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
m = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
z = torch.randn(13, 13, 6)
""",
    "m(z, nn.Transformer.generate_square_subsequent_mask(13)).pow(2).mean().backward()",
)
style(
    "lstm, sequence first", "m = nn.LSTM(5, 6)\nz = torch.randn(9, 13, 5)\n",
    "o, (h, c) = m(z)\n(o.mean() + h.pow(2).mean() + c.mean()).backward()",
)  # fmt: skip
style(
    "lstm, as many layers as rows of a rank", "m = nn.LSTM(5, 6, 7, batch_first=True)\nz = torch.randn(13, 9, 5)\n",
    "o, (h, c) = m(z)\n(o.mean() + h.pow(2).mean()).backward()",
)  # fmt: skip
LENGTHS = "[9, 9, 8, 8, 7, 6, 6, 5, 5, 4, 3, 3, 2]"
style(
    "packed sequence", f"m = nn.LSTM(5, 6, batch_first=True)\nz = torch.randn(13, 9, 5)\nlengths = torch.tensor({LENGTHS})\n",
    """
p = nn.utils.rnn.pack_padded_sequence(z, lengths, batch_first=True)
o, (h, c) = m(p)
(o.data.mean() + h.pow(2).mean()).backward()
""", split=False, ignore=("p", "o"),
)  # fmt: skip
module("lengths as a list", """
def __init__(self):
    super().__init__()
    self.l = nn.LSTM(5, 6, batch_first=True)
def forward(self, x, lengths):
    return self.l(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1][0][-1]
""", f"m(torch.randn(13, 9, 5), {LENGTHS}).pow(2).mean().backward()", split=False)  # fmt: skip
module("lengths as a tensor", """
def __init__(self):
    super().__init__()
    self.l = nn.LSTM(5, 6, batch_first=True)
def forward(self, x, lengths):
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(self.l(packed)[0], batch_first=True)[0]
""", f"m(torch.randn(13, 9, 5), torch.tensor({LENGTHS})).pow(2).mean().backward()", split=False)  # fmt: skip
style("embedding of all nodes", "m = nn.Embedding(9, 4)\n", "p = m(torch.arange(9))\n(p @ p.t()).logsumexp(1).mean().backward()")
module("call of another method", """
def __init__(self):
    super().__init__()
    self.e, self.d = nn.Linear(5, 8), nn.Linear(8, 5)
def encode(self, x):
    return torch.tanh(self.e(x))
def forward(self, x):
    return self.d(self.encode(x))
""", "z = m.encode(x)\n(m(x).pow(2).mean() + z.std(0).mean()).backward()")  # fmt: skip
style("inference mode", SIMPLE, "with torch.inference_mode():\n    o = m(x).clone()")
style(
    "adversarial example", SIMPLE,
    """
xi = x.clone().requires_grad_()
F.cross_entropy(m(xi), y).backward()
a = x + 0.1 * xi.grad.sign()
m.zero_grad()
F.cross_entropy(m(a), y).backward()
""",
)  # fmt: skip
style(
    "moving average of a deep copy", SIMPLE,
    """
e = copy.deepcopy(m)
F.cross_entropy(m(x), y).backward()
with torch.no_grad():
    for a, b in zip(e.parameters(), m.parameters()):
        a.mul_(0.9).add_(b - 0.1 * b.grad, alpha=0.1)
o = e(x)
""",
)  # fmt: skip
style(
    "per-sample gradients by vmap", SIMPLE,
    """
ps = {n: p.detach() for n, p in m.named_parameters()}
f = lambda ps, x, y: F.cross_entropy(torch.func.functional_call(m, ps, (x[None],)), y[None])
gs = torch.func.vmap(torch.func.grad(f), (None, 0, 0))(ps, x, y)
""", split=False,
)  # fmt: skip
module("random view", INIT + """
    self.drop = nn.Dropout(0.5)
def forward(self, x):
    return self.b(self.drop(self.a(x + 0.1 * torch.randn_like(x)))) + torch.rand(x.shape[0], 1)
""", BACKWARD + "\nr = torch.rand(3)")  # fmt: skip
module("noisy weights", """
def __init__(self):
    super().__init__()
    self.a = nn.Linear(5, 26)
def forward(self, x):
    return F.linear(x, self.a.weight + 0.1 * torch.randn_like(self.a.weight))
""", BACKWARD + "\nr = torch.rand(3)")  # fmt: skip
module("layers dropped by a random draw", """
def __init__(self):
    super().__init__()
    self.a, self.b, self.drop = nn.Linear(5, 5), nn.Linear(5, 3), nn.Dropout(0.3)
def forward(self, x):
    return self.b(self.drop(x + self.a(x)) if torch.rand(()) > 0.5 else x)
""", f"for _ in range(6):\n    {BACKWARD.splitlines()[0]}\n    loss.backward()", split=True)  # fmt: skip
module("one output column, squeezed", """
def __init__(self):
    super().__init__()
    self.a = nn.Linear(5, 1)
def forward(self, x):
    return self.a(x).squeeze()
""", "m(x).pow(2).mean().backward()\nm(x[:3]).pow(2).mean().backward()\nm(x[:1]).pow(2).mean().backward()")  # fmt: skip
module("batch-wise normalisation (sinkhorn)", """
def __init__(self):
    super().__init__()
    self.p = nn.Linear(5, 3, bias=False)
def forward(self, x):
    q = self.p(x).exp()
    return q / q.sum(0, keepdim=True)
""", "m(x).pow(2).mean().backward()", split=False)  # fmt: skip

# Ways in which a program meets its parameters
module("weight assigned through .data", INIT + """
def forward(self, x):
    self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.3)
    return self.b(torch.tanh(self.a(x)))
""", BACKWARD)  # fmt: skip
module("weight changed in place", INIT + """
def forward(self, x):
    self.a.weight.data.clamp_(-0.2, 0.2)
    with torch.no_grad():
        self.b.weight.mul_(0.9)
    return self.b(torch.tanh(self.a(x)))
""", BACKWARD)  # fmt: skip
module("reads its weight's gradient", INIT + """
def forward(self, x):
    k = 1.0 if self.a.weight.grad is None else 1 + self.a.weight.grad.norm().item()
    return self.b(self.a(x)) * k
""", BACKWARD + "\n" + BACKWARD)  # fmt: skip
style(
    "weight norm and spectral norm",
    """
new = torch.nn.utils.parametrizations
m = nn.Sequential(new.weight_norm(nn.Linear(5, 8)), nn.Tanh(), new.spectral_norm(nn.Linear(8, 3)))
old = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(5, 8)), nn.Tanh(), torch.nn.utils.weight_norm(nn.Linear(8, 3)))
""",
    BACKWARD + "\n" + BACKWARD + "\nloss = F.cross_entropy(old(x), y)\nloss.backward()\n",
)
style("lazy parameters", "m = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3))\n", BACKWARD + "\n" + BACKWARD)
module("tensors that are not registered", INIT + """
    self.alpha, self.hidden = torch.tensor(1.5, requires_grad=True), [nn.Linear(5, 5)]
def forward(self, x):
    return self.b(self.a(self.hidden[0](x))) * self.alpha
""", BACKWARD + "\ng = [m.alpha.grad] + [p.grad for p in m.hidden[0].parameters()]")  # fmt: skip
style(
    "captured tensor that is not a leaf",
    """
h = nn.Linear(2, 15)
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(3, 3)
    def forward(self, x):
        return self.b(x @ self.w)
m = M()
""",
    "m.w = h(torch.ones(2)).view(5, 3)\n" + BACKWARD,
)
style(
    "hook on a parameter",
    SIMPLE + "handles = [p.register_hook(lambda g: g.clamp(-0.02, 0.02)) for p in m.parameters()]\n",
    BACKWARD,
)
style(
    "optimiser steps during backward", SIMPLE + """
opts = {p: torch.optim.Adam([p], 0.01) for p in m.parameters()}
def step(p):
    opts[p].step()
    p.grad = None
handles = [p.register_post_accumulate_grad_hook(step) for p in m.parameters()]
""", BACKWARD, ignore=("opts",),
)  # fmt: skip
style("autograd.grad of parameters", SIMPLE, "gs = torch.autograd.grad(F.cross_entropy(m(x), y), list(m.parameters()))")
style("backward with inputs", SIMPLE, "F.cross_entropy(m(x), y).backward(inputs=[m[0].weight])")
style(
    "backward with a graph of the gradients", SIMPLE,
    """
F.cross_entropy(m(x), y).backward(create_graph=True)
gs = [p.grad for p in m.parameters()]
for p in m.parameters():
    p.grad = None
sum((g ** 2).sum() for g in gs).backward()
del gs
""",
)  # fmt: skip
style(
    "inside and outside",
    SIMPLE,
    "(F.cross_entropy(m(x), y) + 0.1 * m[0].weight.pow(2).sum() + (x @ m[0].weight.t()).mean()).backward()",
)
module("parameter replaced inside", """
def __init__(self):
    super().__init__()
    self.a = nn.Linear(5, 3)
def forward(self, x):
    self.a.weight = nn.Parameter(self.a.weight.detach() * 0.5)
    return self.a(x)
""", BACKWARD, split=False)  # fmt: skip
style("scripted", "m = torch.jit.script(mlp())\n", BACKWARD)
style(
    "sparse embedding",
    "m = nn.Embedding(11, 4, sparse=True)\nids = torch.arange(26).view(13, 2) % 11\n",
    "m(ids).pow(2).mean().backward()",
)
style(
    "multi-head attention, padding mask, evaluation", """
m = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), 2)
z = torch.randn(13, 4, 6)
pad = torch.arange(4)[None] >= (torch.arange(13) % 3 + 2)[:, None]
""", """
m(z, src_key_padding_mask=pad)[~pad].pow(2).mean().backward()
m.eval()
with torch.no_grad():
    o = m(z, src_key_padding_mask=pad)
""",
)  # fmt: skip
