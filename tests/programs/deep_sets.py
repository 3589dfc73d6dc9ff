class Sets(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi, self.rho = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 1)

    def forward(self, sets):
        return torch.stack([self.rho(self.phi(s).mean(0)) for s in sets]).squeeze(1)


m = Sets()
opt = torch.optim.SGD(m.parameters(), lr=0.05)
sets = [torch.randn(random.randint(1, 5), 3) for _ in range(14)]
y = torch.stack([s.sum() for s in sets])

# %%
losses = []
for i in range(0, 14, 5):
    loss = F.mse_loss(m(sets[i : i + 5]), y[i : i + 5])
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
