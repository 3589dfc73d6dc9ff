m = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
X, Y = torch.randn(26, 6), torch.randn(26, 2)
opt = torch.optim.SGD(m.parameters(), lr=0.1)
seen = {}

# %%
hs = [p.register_hook(lambda g, n=n: seen.__setitem__(n, g.norm().item())) for n, p in m.named_parameters()]
hs.append(m[2].weight.register_hook(lambda g: g * 0.5))
acts = []
h = m[1].register_forward_hook(lambda mod, i, o: acts.append(o.detach().mean().item()))
losses = []
for x, y in zip(X.split(9), Y.split(9)):
    out = m(x)
    out.retain_grad()
    loss = F.mse_loss(out, y)
    opt.zero_grad()
    loss.backward()
    for p in m.parameters():
        p.grad += 0.01 * torch.randn(p.shape)
    opt.step()
    losses.append((loss.item(), out.grad.abs().max().item()))
for q in hs:
    q.remove()
h.remove()
print(len(acts), sorted(seen))
