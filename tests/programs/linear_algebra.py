m = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
head = nn.Linear(5, 5, bias=False)
nn.init.orthogonal_(head.weight)
X = torch.randn(26, 6)
opt = torch.optim.SGD([*m.parameters(), *head.parameters()], lr=0.05)

# %%
losses = []
for x in X.split(13):
    z = head(m(x))
    zc = z - z.mean(0)
    cov = zc.T @ zc / (len(x) - 1) + 1e-3 * torch.eye(5)
    L = torch.linalg.cholesky(cov)
    w = torch.linalg.solve_triangular(L, zc.T, upper=False)
    ev = torch.linalg.eigvalsh(cov)
    orth = (head.weight.T @ head.weight - torch.eye(5)).pow(2).sum()
    loss = -torch.logdet(cov) + orth + ev.max() + (w.pow(4).mean() - 3).abs()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
    with torch.no_grad():
        u, s, v = torch.linalg.svd(head.weight)
        head.weight.copy_(u @ v)
