m = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
X, Y = torch.randn(26, 6), torch.randint(0, 3, (26,))


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **kw):
        super().__init__(params, dict(rho=rho, **kw))
        self.base = base(self.param_groups, **kw)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first(self):
        n = torch.norm(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]))
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad * g["rho"] / (n + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second(self):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()


opt = SAM(m.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)


def bn(on):
    for l in m.modules():
        if isinstance(l, nn.BatchNorm1d):
            if on:
                l.momentum = l.keep
            else:
                l.keep, l.momentum = l.momentum, 0


# %%
losses = []
for x, y in zip(X.split(9), Y.split(9)):
    l = F.cross_entropy(m(x), y)
    l.backward()
    opt.first()
    bn(False)
    F.cross_entropy(m(x), y).backward()
    bn(True)
    opt.second()
    losses.append(l.item())
