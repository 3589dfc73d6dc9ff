enc, decd = (
    nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2)),
    nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 6)),
)
X = torch.randn(40, 6)
opt = torch.optim.SGD([*enc.parameters(), *decd.parameters()], lr=0.05)
centers = torch.randn(3, 2)

# %%
losses = []
for ep in range(3):
    with torch.no_grad():
        z = enc(X)
        assign = torch.cdist(z, centers).argmin(1)
        sums = torch.zeros(3, 2).index_add_(0, assign, z)
        n = torch.bincount(assign, minlength=3).clamp(min=1)
        centers = 0.5 * centers + 0.5 * sums / n[:, None]
    for i in torch.randperm(40).split(13):
        z = enc(X[i])
        q = 1 / (1 + torch.cdist(z, centers) ** 2)
        q = q / q.sum(1, keepdim=True)
        p = q**2 / q.sum(0)
        p = (p / p.sum(1, keepdim=True)).detach()
        loss = (
            F.mse_loss(decd(z), X[i]) + 0.1 * F.kl_div(q.log(), p, reduction="batchmean") + 0.01 * F.mse_loss(z, centers[assign[i]])
        )
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
print(n.tolist())
