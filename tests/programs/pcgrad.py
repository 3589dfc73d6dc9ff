body, heads = nn.Sequential(nn.Linear(6, 12), nn.Tanh()), nn.ModuleList([nn.Linear(12, 1), nn.Linear(12, 1)])
opt = torch.optim.SGD([*body.parameters(), *heads.parameters()], lr=0.1)
X, Y = torch.randn(26, 6), torch.randn(26, 2)

# %%
log = []
for x, y in zip(X.split(13), Y.split(13)):
    h = body(x)
    ls = [F.mse_loss(hd(h).squeeze(1), y[:, i]) for i, hd in enumerate(heads)]
    gs = [torch.autograd.grad(l, list(body.parameters()), retain_graph=True) for l in ls]
    flat = [torch.cat([g.flatten() for g in gg]) for gg in gs]
    dot = flat[0] @ flat[1]
    if dot < 0:
        flat = [flat[0] - dot / flat[1].norm() ** 2 * flat[1], flat[1] - dot / flat[0].norm() ** 2 * flat[0]]
    tot = flat[0] + flat[1]
    opt.zero_grad()
    sum(ls).backward(inputs=list(heads.parameters()))
    at = 0
    for p in body.parameters():
        p.grad = tot[at : at + p.numel()].view_as(p).clone()
        at += p.numel()
    opt.step()
    log.append((dot.item(), [l.item() for l in ls]))
