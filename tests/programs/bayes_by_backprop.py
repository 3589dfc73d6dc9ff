class BL(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.mu, self.rho = nn.Parameter(torch.randn(o, i) * 0.1), nn.Parameter(torch.full((o, i), -3.0))

    def forward(self, x):
        s = F.softplus(self.rho)
        w = self.mu + s * torch.randn_like(s)
        self.kl = (s**2 + self.mu**2 - 1 - 2 * s.log()).sum() / 2
        return x @ w.T


a, b = BL(5, 12), BL(12, 1)
opt = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=1e-2)
X, Y = torch.randn(26, 5), torch.randn(26, 1)

# %%
losses = []
for x, y in zip(X.split(13), Y.split(13)):
    out = torch.stack([b(torch.tanh(a(x))) for _ in range(2)])
    loss = F.gaussian_nll_loss(out.mean(0), y, out.var(0) + 0.1) + (a.kl + b.kl) / 260
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
