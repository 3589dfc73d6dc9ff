class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.EmbeddingBag(30, 8, mode="mean"), nn.Linear(8, 2)

    def forward(self, t, off):
        return self.o(self.e(t, off))


bag = Bag()
opt = torch.optim.SGD(bag.parameters(), lr=0.5)
docs = [torch.randint(0, 30, (random.randint(2, 6),)) for _ in range(20)]
lab = torch.randint(0, 2, (20,))

# %%
losses = []
for i in range(0, 20, 7):
    b = docs[i : i + 7]
    text = torch.cat(b)
    off = torch.tensor([0] + [len(d) for d in b[:-1]]).cumsum(0)
    loss = F.cross_entropy(bag(text, off), lab[i : i + 7])
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
