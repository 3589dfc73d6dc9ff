from torch.func import functional_call, vmap, grad

m = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
X, Y = torch.randn(13, 5), torch.randint(0, 3, (13,))
opt = torch.optim.SGD(m.parameters(), lr=0.1)

# %%
losses = []
for _ in range(3):
    params = {k: v.detach() for k, v in m.named_parameters()}

    def one(p, x, y):
        return F.cross_entropy(functional_call(m, p, (x[None],)), y[None])

    g = vmap(grad(one), in_dims=(None, 0, 0))(params, X, Y)
    norms = torch.stack([v.flatten(1).norm(dim=1) for v in g.values()]).norm(dim=0)
    f = (1.0 / norms).clamp(max=1)
    opt.zero_grad()
    for k, p in m.named_parameters():
        p.grad = (g[k] * f.view(-1, *[1] * (g[k].dim() - 1))).mean(0) + 0.01 * torch.randn_like(p)
    opt.step()
    losses.append(F.cross_entropy(m(X), Y).item())
