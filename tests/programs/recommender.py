class MF(nn.Module):
    def __init__(self, nu, ni, k):
        super().__init__()
        self.u, self.i = nn.Embedding(nu, k), nn.Embedding(ni, k)
        self.bu, self.bi, self.mu = nn.Embedding(nu, 1), nn.Embedding(ni, 1), nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.bu.weight)
        nn.init.zeros_(self.bi.weight)

    def forward(self, u, i):
        return (self.u(u) * self.i(i)).sum(-1) + self.bu(u).squeeze(-1) + self.bi(i).squeeze(-1) + self.mu

    def all_items(self, u):
        return self.u(u) @ self.i.weight.T + self.bu(u) + self.bi.weight.T + self.mu


mf = MF(12, 15, 8)
opt = torch.optim.SGD(mf.parameters(), lr=0.1, weight_decay=1e-4)
U, I = torch.randint(0, 12, (60,)), torch.randint(0, 15, (60,))

# %%
hist = []
for epoch in range(2):
    order = np.random.permutation(60)
    for b in range(0, 60, 16):
        k = torch.from_numpy(order[b : b + 16])
        u, i = U[k], I[k]
        j = torch.randint(0, 15, i.shape)
        loss = -F.logsigmoid(mf(u, i) - mf(u, j)).mean() + 1e-3 * (mf.u(u).pow(2).sum() + mf.i(i).pow(2).sum())
        opt.zero_grad()
        loss.backward()
        opt.step()
        hist.append(loss.item())
hits = 0
with torch.no_grad():
    for u in range(12):
        scores = mf.all_items(torch.tensor([u]))[0]
        seen = I[U == u]
        top = scores.topk(5).indices
        hits += sum(int(x in seen) for x in top)
print("hits", hits)
