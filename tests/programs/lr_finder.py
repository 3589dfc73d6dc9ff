m = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
X, Y = torch.randn(26, 6), torch.randn(26, 1)
opt = torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9)

# %%
saved = copy.deepcopy((m.state_dict(), opt.state_dict()))
lrs, curve, best, avg = [], [], float("inf"), 0.0
for i in range(8):
    lr = 1e-3 * (1000 ** (i / 7))
    opt.param_groups[0]["lr"] = lr
    k = torch.randint(0, 26, (13,))
    loss = F.mse_loss(m(X[k]), Y[k])
    opt.zero_grad()
    loss.backward()
    opt.step()
    avg = 0.9 * avg + 0.1 * loss.item()
    s = avg / (1 - 0.9 ** (i + 1))
    lrs.append(lr)
    curve.append(s)
    if s > 4 * best:
        break
    best = min(best, s)
m.load_state_dict(saved[0])
opt.load_state_dict(saved[1])
pick = lrs[int(np.argmin(np.gradient(curve)))]
opt.param_groups[0]["lr"] = pick
for _ in range(2):
    loss = F.mse_loss(m(X), Y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print(pick)
