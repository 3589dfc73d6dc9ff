class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        self.leaf, self.join, self.out = nn.Embedding(10, 6), nn.Linear(12, 6), nn.Linear(6, 2)

    def node(self, t):
        return self.leaf.weight[t] if isinstance(t, int) else torch.tanh(self.join(torch.cat([self.node(t[0]), self.node(t[1])])))

    def forward(self, t):
        return self.out(self.node(t))


def grow(d):
    return random.randrange(10) if d == 0 or random.random() < 0.3 else (grow(d - 1), grow(d - 1))


trees = [grow(3) for _ in range(8)]
lab = torch.randint(0, 2, (8,))
m = Tree()
opt = torch.optim.SGD(m.parameters(), lr=0.1)

# %%
losses = []
for i, t in enumerate(trees):
    loss = F.cross_entropy(m(t)[None], lab[i : i + 1]) / 4
    loss.backward()
    losses.append(loss.item())
    if (i + 1) % 4 == 0:
        opt.step()
        opt.zero_grad()
