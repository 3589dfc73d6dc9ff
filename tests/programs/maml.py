from torch.func import functional_call

net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
opt = torch.optim.SGD(net.parameters(), lr=0.01)

# %%
losses = []
for it in range(3):
    opt.zero_grad()
    total = 0.0
    for task in range(3):
        amp, ph = random.uniform(0.5, 2), random.uniform(0, 3)
        xs, xq = torch.rand(10, 1) * 4, torch.rand(10, 1) * 4
        ys, yq = amp * torch.sin(xs + ph), amp * torch.sin(xq + ph)
        params = dict(net.named_parameters())
        inner = F.mse_loss(functional_call(net, params, (xs,)), ys)
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        fast = {k: p - 0.1 * g for (k, p), g in zip(params.items(), grads)}
        total = total + F.mse_loss(functional_call(net, fast, (xq,)), yq)
    total.backward()
    opt.step()
    losses.append(total.item())
