class Hyper(nn.Module):
    def __init__(self):
        super().__init__()
        self.z = nn.Embedding(3, 4)
        self.w, self.b = nn.Linear(4, 5 * 8), nn.Linear(4, 8)
        self.o = nn.Linear(8, 1)

    def forward(self, x, task):
        z = self.z(task)
        w = self.w(z).view(-1, 8, 5)
        return self.o(torch.tanh(torch.bmm(w, x.unsqueeze(2)).squeeze(2) + self.b(z)))


m = Hyper()
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, Tk, Y = torch.randn(26, 5), torch.randint(0, 3, (26,)), torch.randn(26, 1)

# %%
per = {t: [] for t in range(3)}
for k in torch.randperm(26).split(9):
    e = (m(X[k], Tk[k]) - Y[k]) ** 2
    loss = e.mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    for t in Tk[k].unique().tolist():
        per[t].append(e.detach()[Tk[k] == t].mean().item())
