G = nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(0.2), nn.Linear(16, 4))
D = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
og, od = torch.optim.SGD(G.parameters(), lr=0.01), torch.optim.SGD(D.parameters(), lr=0.01)
data = torch.randn(40, 4) + 2

# %%
log = []
for it in range(4):
    for _ in range(2):
        real = data[torch.randperm(40)[:11]]
        fake = G(torch.randn(11, 3)).detach()
        a = torch.rand(11, 1)
        mid = (a * real + (1 - a) * fake).requires_grad_(True)
        dm = D(mid)
        (grad,) = torch.autograd.grad(dm, mid, torch.ones_like(dm), create_graph=True, retain_graph=True)
        gp = ((grad.norm(2, dim=1) - 1) ** 2).mean()
        d_loss = D(fake).mean() - D(real).mean() + 10 * gp
        od.zero_grad()
        d_loss.backward()
        od.step()
    g_loss = -D(G(torch.randn(11, 3))).mean()
    og.zero_grad()
    g_loss.backward()
    og.step()
    log.append((d_loss.item(), g_loss.item(), gp.item()))
