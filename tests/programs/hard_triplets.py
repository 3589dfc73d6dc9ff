m = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
opt = torch.optim.SGD(m.parameters(), lr=0.05)
X, Y = torch.randn(30, 6), torch.randint(0, 4, (30,))

# %%
losses = []
for k in torch.randperm(30).split(15):
    z = F.normalize(m(X[k]), dim=1)
    y = Y[k]
    d = torch.cdist(z, z)
    same = y[:, None] == y[None]
    hp = (d * same).max(1).values
    hn = d.masked_fill(same, float("inf")).min(1).values
    ok = torch.isfinite(hn)
    loss = F.relu(hp[ok] - hn[ok] + 0.3).mean() + 0.1 * (1 - F.cosine_similarity(z[:-1], z[1:])).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append((loss.item(), int((hp > hn).sum())))
with torch.no_grad():
    z = m(X)
    nn_ = (torch.cdist(z, z) + torch.eye(30) * 1e9).argmin(1)
    r1 = (Y[nn_] == Y).double().mean().item()
