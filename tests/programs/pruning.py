import torch.nn.utils.prune as prune

m = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, Y = torch.randn(26, 6), torch.randn(26, 2)


# %%
def train(n):
    out = []
    for _ in range(n):
        loss = F.mse_loss(m(X), Y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        out.append(loss.item())
    return out


losses = train(2)
prune.l1_unstructured(m[0], "weight", amount=0.3)
prune.ln_structured(m[2], "weight", 0.5, n=2, dim=1)
opt = torch.optim.SGD(m.parameters(), lr=0.1)
losses += train(2)
sparsity = float((m[0].weight == 0).double().mean())
prune.remove(m[0], "weight")
losses += [F.mse_loss(m(X), Y).item()]
print(sparsity)
