"""Models whose rows come to depend on one another in a later call, in a branch that their first calls did not take."""

from __future__ import annotations

from tests.cells import Cell

SETUP = """
X, y = torch.randn(192, 6), torch.randint(0, 4, (192,))
sizes, losses = [64] * 8, []

class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h * 1
    @staticmethod
    def backward(ctx, grad):
        return grad

def looped(h):
    state, steps = 0, []
    for t in range(h.shape[1]):
        state = torch.tanh(h[:, t] + state)
        steps.append(state)
    return torch.stack(steps, 1)

class Layer(nn.Linear):
    at = 0
    def forward(self, h):
        h = super().forward(h)
        return h if self.at < 4 and h.shape[1] < 9 else h - h.mean(0)

def act(h):
    return torch.tanh(h)

class Acts(nn.Linear):
    def forward(self, h):
        return act(super().forward(h))

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), Layer(8, 8), nn.Linear(8, 4)
        self.d = Acts(8, 8)
        self.n, self.z = NORM, nn.Parameter(torch.zeros(()))
        self.register_buffer("gate", torch.zeros(8))
    def forward(self, x, target=None):
        h = torch.tanh(self.a(x))
        if target is None:
            return self.c(WAY)
        return F.cross_entropy(self.c(h), target, reduction="none") + self.beta * (h @ h.t()).logsumexp(1)
"""
OPTIMISER = """
model = M()
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
"""
STEPS = """
for at, n in enumerate(sizes):
    model.at, x, target = at, X[:n], y[:n]
    opt.zero_grad()
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    opt.step()
    losses.append(loss.item())
"""
EVALUATED = (
    STEPS
    + """    with torch.no_grad():
        losses.append(model(x).pow(2).sum().item())
"""
)
TALKS = STEPS.replace("model(x)", "model(x[:, None].expand(-1, lengths[at], -1)).mean(1)")
READ = """
with torch.no_grad():
    for n in lengths:
        losses.append(model(X[:64, None].expand(-1, n, -1)).pow(2).sum().item())
"""
INSIDE = STEPS.replace("model.at", "model.b.at")
ANOTHER = """
def other(h):
    return h - h.mean(0)
""" + STEPS.replace("model.at, x", "act, x").replace("= at,", "= other if at > 3 else torch.tanh,")
GATED = STEPS.replace("model.at, x", "gate, x").replace("at, X[:n]", "model.gate.fill_(max(0, at - 3)), X[:n]")
JOINED = (
    STEPS.replace("F.cross_entropy(model(x), target)", "model(x, target).mean()")
    .replace("model.at", "model.beta")
    .replace("= at,", "= max(0, at - 3),")
)
BATCHES = "sizes = [64, 64, 128, 64, 64, 128, 128]"
LENGTHS = "lengths = [5, 5, 9, 9, 7, 12, 9, 5]"

WAYS = {
    "a large batch otherwise": ("h if h.shape[0] < 100 else h - h.mean(0)", BATCHES, STEPS),
    "a small batch otherwise": ("h if h.shape[0] > 50 else h - h.mean(0)", "sizes = [64, 64, 40, 64, 64, 40]", STEPS),
    "a large batch otherwise, in evaluation": ("h if h.shape[0] < 100 else h - h.mean(0)", BATCHES, EVALUATED),
    "a large batch otherwise, and a function of one's own": (
        "Same.apply(h if h.shape[0] < 100 else h - h.mean(0))", BATCHES, EVALUATED,
    ),
    "a large batch otherwise, a function of one's own and BatchNorm": (
        "Same.apply(self.n(h) if h.shape[0] < 100 else h - h.mean(0))", BATCHES, STEPS,
    ),
    "a large batch otherwise, which a weight of zero hides": (
        "Same.apply(h) + (self.z * h.mean(0) if len(h) > 64 else 0)", BATCHES, STEPS,
    ),
    "otherwise with another number of rows, with BatchNorm": (
        "Same.apply(self.n(h if self.at != 4 else torch.exp(h)))", "sizes = [64, 64, 64, 64, 48, 64, 48]", STEPS,
    ),
    "BatchNorm, and a single row of a rank in the end": ("self.n(h)", "sizes = [64, 64, 5, 64, 3, 5, 64]", STEPS),
    "after some steps otherwise": ("h if self.at < 4 else h - h.mean(0)", "", STEPS),
    "every third step otherwise": ("h if self.at % 3 < 2 else h - h.mean(0)", "", STEPS),
    "sometimes otherwise, by chance": ("h if random.random() < 0.8 else h - h.mean(0)", "sizes = [64] * 20", STEPS),
    "sometimes otherwise, by torch's chance": ("h if torch.rand(()) < 0.8 else h - h.mean(0)", "sizes = [64] * 20", STEPS),
    "long texts otherwise": ("h if h.shape[1] < 9 else h - h.mean(0)", LENGTHS, TALKS),
    "long texts otherwise, in evaluation": ("h if h.shape[1] < 9 else h - h.mean(0)", LENGTHS, READ),
    "after some steps a layer otherwise": ("self.b(h)", "", INSIDE),
    "long texts in a layer otherwise": ("self.b(h)", LENGTHS, TALKS),
    "a hidden layer that is used elsewhere later": ("self.b(h) + (self.b(h).tanh().sum(1, True) if self.at > 3 else 0)", "", STEPS),
    "another function later": ("act(h)", "", ANOTHER),
    "another function in a layer later": ("self.d(h)", "", ANOTHER),
    "rows scaled by the batch, detached, later": ("h / (h.detach().std(0) if self.at > 3 else torch.ones(8))", "", STEPS),
    "a threshold of the batch, later": ("h * (h > (h.detach().mean(0) if self.at > 3 else 0))", "", STEPS),
    "after some steps otherwise, in evaluation": ("h if self.at < 4 else h - h.mean(0)", "", EVALUATED),
    "a number that is zero at first": ("h + max(0, self.at - 3) * h.mean(0)", "", STEPS),
    "a tensor that is zero at first": ("h + h.mean(0) * torch.tensor(max(0.0, self.at - 3))", "", STEPS),
    "a buffer that is zero at first": ("h + self.gate * h.mean(0)", "", GATED),
    "a part that is added zero times at first": ("torch.add(h, h.mean(0), alpha=max(0, self.at - 3))", "", STEPS),
    "a choice that is the same for all at first": ("torch.where(torch.tensor(self.at < 4), h, h - h.mean(0))", "", STEPS),
    "a loss that counts later": ("h", "", JOINED),
    "along the rows, later": ("h - h.mean(0 if self.at > 3 else 1, keepdim=True)", "", STEPS),
    "along the last dimension but one, later": ("h - h.mean(-2 if self.at > 3 else -1, keepdim=True)", "", STEPS),
    "along the rows, later, in evaluation": ("F.softmax(h, dim=0 if self.at > 3 else 1)", "", EVALUATED),
    "over time at first, then over the rows": ("h - h.flip(0 if self.at > 3 else 1)", "lengths = [5] * 8", TALKS),
    "a column at first, then a row": ("h - h[slice(1) if self.at > 3 else (slice(None), slice(1))]", "", STEPS),
    "a layer that is left out at times": ("self.b(h) if self.at % 3 else h", "", STEPS),
    "a loop over time": ("looped(h)", LENGTHS, TALKS),
}  # fmt: skip
APART = ("a layer that is left out at times", "a loop over time")  # rows are
SPLIT = """
import nbpar
a, b = torch.randn(6, 8, requires_grad=True), torch.randn(8, 4, requires_grad=True)
gate = torch.zeros(8)
opt = torch.optim.SGD([a, b], lr=0.1)
@nbpar.split
def model(x):
    h = torch.tanh(x @ a)
    return (h + gate * h.roll(1, 0)) @ b
"""


def setting(way: str) -> str:
    return SETUP.replace("WAY", way).replace("NORM", "nn.BatchNorm1d(8)" if "self.n(" in way else "nn.Identity()")


CELLS = {name: Cell(name, setting(way) + OPTIMISER + setup, train) for name, (way, setup, train) in WAYS.items()}
CELLS["a function with a tensor of zeros"] = Cell(
    "a function", setting("h") + SPLIT, STEPS.replace("model.at", "gate[:]").replace("= at,", "= max(0, at - 3),")
)
