m = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
X, Y = torch.randn(50, 4), torch.randint(0, 3, (50,))
have = torch.zeros(50, dtype=torch.bool)
have[:8] = True

# %%
for rnd in range(3):
    opt = torch.optim.SGD(m.parameters(), lr=0.2)
    for _ in range(3):
        loss = F.cross_entropy(m(X[have]), Y[have])
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        pr = m(X).softmax(1)
        ent = -(pr * pr.log()).sum(1)
        ent[have] = -1
        have[ent.topk(5).indices] = True
print(have.nonzero().flatten().tolist())
