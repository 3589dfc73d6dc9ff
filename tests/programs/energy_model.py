E = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 1))
opt = torch.optim.SGD(E.parameters(), lr=0.02)
buf = torch.rand(20, 2) * 2 - 1
data = torch.randn(30, 2) * 0.3

# %%
losses = []
for it in range(3):
    idx = torch.randint(0, 20, (9,))
    x = buf[idx].clone()
    new = torch.rand(9) < 0.2
    x[new] = torch.rand(int(new.sum()), 2) * 2 - 1
    x.requires_grad_(True)
    for p in E.parameters():
        p.requires_grad_(False)
    for _ in range(4):
        e = E(x).sum()
        (g,) = torch.autograd.grad(e, [x])
        x.data.add_(-0.1 * g + 0.05 * torch.randn_like(x))
        x.data.clamp_(-1, 1)
    for p in E.parameters():
        p.requires_grad_(True)
    x = x.detach()
    buf[idx] = x
    ep, en = E(data[torch.randint(0, 30, (9,))]), E(x)
    loss = (ep - en).mean() + 0.1 * (ep**2 + en**2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
