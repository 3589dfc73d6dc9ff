class T(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(40, 8, padding_idx=0)
        self.cs = nn.ModuleList([nn.Conv1d(8, 6, k) for k in (2, 3, 4)])
        self.d = nn.Dropout(0.3)

    def forward(self, x):
        h = self.e(x).permute(0, 2, 1)
        return self.d(torch.cat([F.relu(c(h)).amax(2) for c in self.cs], 1))


t, out = T(), nn.AdaptiveLogSoftmaxWithLoss(18, 20, cutoffs=[5, 12], div_value=2.0)
opt = torch.optim.SGD([*t.parameters(), *out.parameters()], lr=0.1)
X, Y = torch.randint(0, 40, (26, 9)), torch.randint(0, 20, (26,))

# %%
losses = []
for x, y in zip(X.split(13), Y.split(13)):
    o = out(t(x), y)
    opt.zero_grad()
    o.loss.backward()
    opt.step()
    losses.append(o.loss.item())
t.eval()
with torch.no_grad():
    pred = out.predict(t(X))
    lp = out.log_prob(t(X))[:, 0]
