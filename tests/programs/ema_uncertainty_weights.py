from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Multi(nn.Module):
    def __init__(self):
        super().__init__()
        self.b, self.h1, self.h2 = nn.Sequential(nn.Linear(6, 16), nn.GELU()), nn.Linear(16, 3), nn.Linear(16, 1)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        h = self.b(x)
        return {"cls": self.h1(h), "reg": self.h2(h).squeeze(1)}


m = Multi()
ema = AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9))
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, c, r = torch.randn(26, 6), torch.randint(0, 3, (26,)), torch.randn(26)

# %%
losses = []
for i in range(4):
    k = torch.randperm(26)[:13]
    out = m(X[k])
    ls = torch.stack([F.cross_entropy(out["cls"], c[k], label_smoothing=0.1), F.mse_loss(out["reg"], r[k])])
    loss = (ls * torch.exp(-m.log_vars) + m.log_vars).sum()
    opt.zero_grad()
    loss.backward()
    opt.step()
    ema.update_parameters(m)
    losses.append(ls.detach().clone())
acc = (ema(X)["cls"].argmax(1) == c).double().mean().item()
