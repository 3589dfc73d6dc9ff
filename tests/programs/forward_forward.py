class FF(nn.Linear):
    def __init__(self, i, o):
        super().__init__(i, o)
        self.opt = torch.optim.SGD(self.parameters(), lr=0.05)

    def forward(self, x):
        return F.relu(super().forward(x / (x.norm(2, 1, keepdim=True) + 1e-4)))

    def train_on(self, p, n):
        gp, gn = self(p).pow(2).mean(1), self(n).pow(2).mean(1)
        loss = F.softplus(torch.cat([-gp + 2, gn - 2])).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return self(p).detach(), self(n).detach(), loss.item()


layers = nn.ModuleList([FF(8, 16), FF(16, 16)])
X, Y = torch.rand(20, 6), torch.randint(0, 2, (20,))

# %%
losses = []
for _ in range(2):
    p, n = torch.cat([X, F.one_hot(Y, 2)], 1), torch.cat([X, F.one_hot(1 - Y, 2)], 1)
    for l in layers:
        p, n, v = l.train_on(p, n)
        losses.append(v)
good = []
for c in range(2):
    h = torch.cat([X, F.one_hot(torch.full((20,), c), 2)], 1)
    g = 0
    for l in layers:
        h = l(h)
        g = g + h.pow(2).mean(1)
    good.append(g)
acc = (torch.stack(good, 1).argmax(1) == Y).sum().item()
print(acc)
