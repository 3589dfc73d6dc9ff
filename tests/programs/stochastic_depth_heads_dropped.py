class B(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.f, self.p = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()), p

    def forward(self, x):
        if self.training:
            k = (torch.rand(x.shape[0], 1) >= self.p).to(x.dtype) / (1 - self.p)
            return x + k * self.f(x)
        return x + self.f(x)


m = nn.Sequential(nn.Linear(6, 8), B(0.1), B(0.3), nn.Linear(8, 3))
opt = torch.optim.SGD(m.parameters(), lr=0.1)
sch = torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=4)
X, Y = torch.randn(26, 6), torch.randint(0, 3, (26,))

# %%
losses = []
for x, y in zip(X.split(7), Y.split(7)):
    loss = F.cross_entropy(m(x), y, reduction="none")
    w = torch.where(loss.detach() > loss.detach().median(), 1.5, 0.5)
    loss = (w * loss).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    sch.step()
    losses.append(loss.item())
m.eval()
mc = torch.stack([m(X).softmax(1) for _ in range(2)]).mean(0)
