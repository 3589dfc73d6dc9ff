from torch.distributions import Normal, Independent


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.s = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.t = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        if self.flip:
            a, b = b, a
        s = torch.tanh(self.s(a))
        b = b * s.exp() + self.t(a)
        out = torch.cat([b, a] if self.flip else [a, b], 1)
        return out, s.sum(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Coupling(i % 2 == 1) for i in range(4)])
        self.register_buffer("loc", torch.zeros(4))
        self.register_buffer("scale", torch.ones(4))

    def log_prob(self, x):
        ld = 0
        for l in self.layers:
            x, d = l(x)
            ld = ld + d
        return Independent(Normal(self.loc, self.scale), 1).log_prob(x) + ld

    def forward(self, x):
        return self.log_prob(x)


flow = Flow()
X = torch.randn(30, 4) * 2 + 1
opt = torch.optim.SGD(flow.parameters(), lr=0.01)

# %%
losses = []
for step in range(5):
    x = X[torch.randint(0, 30, (13,))]
    loss = -flow(x).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
with torch.no_grad():
    best = flow(X).topk(3).indices
print(best.tolist())
