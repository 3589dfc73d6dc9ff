class CNP(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.d = (
            nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8)),
            nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 2)),
        )

    def forward(self, xc, yc, xt):
        r = self.e(torch.cat([xc, yc], -1)).mean(1, keepdim=True).expand(-1, xt.shape[1], -1)
        mu, s = self.d(torch.cat([r, xt], -1)).chunk(2, -1)
        return torch.distributions.Normal(mu, 0.1 + 0.9 * F.softplus(s))


m = CNP()
opt = torch.optim.SGD(m.parameters(), lr=0.05)

# %%
losses = []
for it in range(3):
    x = torch.rand(9, 12, 1) * 4 - 2
    a = torch.rand(9, 1, 1)
    y = torch.sin(x * (1 + a))
    n = int(torch.randint(3, 8, ()))
    loss = -m(x[:, :n], y[:, :n], x).log_prob(y).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
