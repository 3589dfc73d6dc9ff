class Enc(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.GRU(2, 8, batch_first=True)

    def forward(self, x):
        return self.g(x)[1][0]


class Dec(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.o = nn.GRUCell(1, 8), nn.Linear(8, 1)

    def forward(self, y, h):
        h = self.c(y, h)
        return self.o(h), h


enc, dec = Enc(), Dec()
opt = torch.optim.SGD(list(enc.parameters()) + list(dec.parameters()), lr=0.05)
crit = nn.L1Loss()
S = torch.sin(torch.linspace(0, 12, 80))
X = torch.stack([torch.stack([S[i : i + 10], S[i : i + 10] ** 2], 1) for i in range(40)])
Y = torch.stack([S[i + 10 : i + 14] for i in range(40)])

# %%
losses = []
for ep in range(2):
    for i in range(0, 40, 15):
        x, y = X[i : i + 15], Y[i : i + 15]
        h = enc(x)
        inp = x[:, -1, :1]
        outs = []
        teacher = random.random() < 0.5
        for t in range(4):
            o, h = dec(inp, h)
            outs.append(o)
            inp = y[:, t : t + 1] if teacher else o
        pred = torch.cat(outs, 1)
        loss = crit(pred, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
mae = np.abs(pred.detach().numpy() - y.numpy()).mean(0)
