class Sel(nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.e = nn.Linear(5, 4), nn.ModuleList([nn.Linear(5, 2) for _ in range(4)])

    def forward(self, x, tau, hard=False):
        w = F.gumbel_softmax(self.g(x), tau=tau, hard=hard)
        return sum(w[:, i : i + 1] * e(x) for i, e in enumerate(self.e)), w


m = Sel()
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, Y = torch.randn(26, 5), torch.randn(26, 2)

# %%
losses, use, tau = [], torch.zeros(4), 1.0
for x, y in zip(X.split(9), Y.split(9)):
    o, w = m(x, tau, hard=tau < 0.9)
    loss = F.mse_loss(o, y) + 0.1 * (w.mean(0) * (w.mean(0) + 1e-9).log()).sum()
    opt.zero_grad()
    loss.backward()
    opt.step()
    use += w.detach().sum(0)
    tau *= 0.9
    losses.append(loss.item())
