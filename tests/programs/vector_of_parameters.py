from torch.nn.utils import parameters_to_vector, vector_to_parameters

m = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
X, Y = torch.randn(20, 4), torch.randn(20, 1)

# %%
losses = []
for it in range(3):
    base = parameters_to_vector(m.parameters()).detach().clone()
    eps = torch.randn(5, base.numel())
    f = []
    for e in eps:
        vector_to_parameters(base + 0.1 * e, m.parameters())
        with torch.no_grad():
            f.append(-F.mse_loss(m(X), Y).item())
    f = torch.tensor(f)
    adv = (f - f.mean()) / (f.std() + 1e-8)
    vector_to_parameters(base + 0.05 * (adv[:, None] * eps).mean(0), m.parameters())
    losses.append(f.max().item())
loss = F.mse_loss(m(X), Y)
g = torch.autograd.grad(loss, list(m.parameters()), create_graph=True)
flat = torch.cat([a.reshape(-1) for a in g])
v = torch.randn_like(flat)
hv = torch.cat([a.reshape(-1) for a in torch.autograd.grad(flat @ v, list(m.parameters()))])
curv = (v @ hv).item()
