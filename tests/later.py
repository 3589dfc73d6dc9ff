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

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), Layer(8, 8), nn.Linear(8, 4)
    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(WAY)
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
INSIDE = STEPS.replace("model.at", "model.b.at")
BATCHES = "sizes = [64, 64, 128, 64, 64, 128, 128]"
LENGTHS = "lengths = [5, 5, 9, 9, 7, 12, 9, 5]"

WAYS = {
    "a large batch otherwise": ("h if h.shape[0] < 100 else h - h.mean(0)", BATCHES, STEPS),
    "a small batch otherwise": ("h if h.shape[0] > 50 else h - h.mean(0)", "sizes = [64, 64, 40, 64, 64, 40]", STEPS),
    "a large batch otherwise, in evaluation": ("h if h.shape[0] < 100 else h - h.mean(0)", BATCHES, EVALUATED),
    "a large batch otherwise, and a function of one's own": (
        "Same.apply(h if h.shape[0] < 100 else h - h.mean(0))", BATCHES, EVALUATED,
    ),
    "after some steps otherwise": ("h if self.at < 4 else h - h.mean(0)", "", STEPS),
    "every third step otherwise": ("h if self.at % 3 < 2 else h - h.mean(0)", "", STEPS),
    "sometimes otherwise, by chance": ("h if random.random() < 0.8 else h - h.mean(0)", "sizes = [64] * 20", STEPS),
    "sometimes otherwise, by torch's chance": ("h if torch.rand(()) < 0.8 else h - h.mean(0)", "sizes = [64] * 20", STEPS),
    "long texts otherwise": ("h if h.shape[1] < 9 else h - h.mean(0)", LENGTHS, TALKS),
    "after some steps a layer otherwise": ("self.b(h)", "", INSIDE),
    "long texts in a layer otherwise": ("self.b(h)", LENGTHS, TALKS),
    "a layer that is left out at times": ("self.b(h) if self.at % 3 else h", "", STEPS),
    "a loop over time": ("looped(h)", LENGTHS, TALKS),
}  # fmt: skip
APART = ("a layer that is left out at times", "a loop over time")  # rows are
CELLS = {name: Cell(name, SETUP.replace("WAY", way) + OPTIMISER + setup, train) for name, (way, setup, train) in WAYS.items()}
