class TransE(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.r = nn.Embedding(20, 8), nn.Embedding(4, 8)
        with torch.no_grad():
            self.r.weight.data = F.normalize(self.r.weight.data, dim=1)

    def forward(self, h, r, t):
        return (self.e(h) + self.r(r) - self.e(t)).norm(p=1, dim=1)


kg = TransE()
opt = torch.optim.SGD(kg.parameters(), lr=0.05)
T = torch.stack([torch.randint(0, 20, (50,)), torch.randint(0, 4, (50,)), torch.randint(0, 20, (50,))], 1)

# %%
losses = []
for epoch in range(2):
    kg.e.weight.data = F.normalize(kg.e.weight.data, dim=1)
    for b in T[torch.randperm(50)].split(17):
        h, r, t = b.unbind(1)
        neg = torch.randint(0, 20, (len(b),))
        flip = torch.rand(len(b)) < 0.5
        nh, nt = torch.where(flip, neg, h), torch.where(flip, t, neg)
        loss = F.margin_ranking_loss(kg(nh, r, nt), kg(h, r, t), torch.ones(len(b)), margin=1.0)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
ranks = []
with torch.no_grad():
    for h, r, t in T[:5].tolist():
        d = kg(torch.full((20,), h), torch.full((20,), r), torch.arange(20))
        ranks.append(int((d < d[t]).sum()) + 1)
print("MR", np.mean(ranks))
