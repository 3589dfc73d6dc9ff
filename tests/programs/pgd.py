m = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, Y = torch.rand(22, 1, 6, 6), torch.randint(0, 3, (22,))


def pgd(model, x, y, eps=0.1, n=3):
    adv = x + torch.empty_like(x).uniform_(-eps, eps)
    adv = adv.clamp(0, 1).detach()
    for _ in range(n):
        adv.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)
        adv = adv.detach() + 0.04 * g.sign()
        adv = torch.min(torch.max(adv, x - eps), x + eps).clamp(0, 1)
    return adv


# %%
losses = []
for x, y in zip(X.split(11), Y.split(11)):
    m.eval()
    adv = pgd(m, x, y)
    m.train()
    loss = F.cross_entropy(m(adv), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
x = X[:5].clone().requires_grad_()
F.cross_entropy(m(x), Y[:5]).backward()
fgsm = (x + 0.1 * x.grad.sign()).detach()
rob = (m(fgsm).argmax(1) == Y[:5]).sum().item()
print(rob)
