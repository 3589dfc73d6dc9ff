from torch.distributions import Categorical


class AC(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.pi, self.v = nn.Sequential(nn.Linear(4, 16), nn.Tanh()), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, s):
        h = self.body(s)
        return Categorical(logits=self.pi(h)), self.v(h).squeeze(-1)


ac = AC()
opt = torch.optim.SGD(ac.parameters(), lr=0.02)
W = torch.randn(3, 4)

# %%
obs, acts, logps, rews, vals = [], [], [], [], []
s = torch.zeros(4)
for t in range(20):
    with torch.no_grad():
        d, v = ac(s[None])
        a = d.sample()
    obs.append(s)
    acts.append(a)
    logps.append(d.log_prob(a))
    vals.append(v)
    s = torch.tanh(s + 0.3 * W[a.item()] + 0.1 * torch.randn(4))
    rews.append(s.sum().item())
adv, g = [], 0.0
vals = torch.cat(vals)
for t in reversed(range(20)):
    nxt = vals[t + 1] if t < 19 else 0.0
    g = rews[t] + 0.9 * nxt - vals[t] + 0.9 * 0.95 * g
    adv.insert(0, g)
adv = torch.stack(adv)
ret = adv + vals
adv = (adv - adv.mean()) / (adv.std() + 1e-8)
obs, acts, logps = torch.stack(obs), torch.cat(acts), torch.cat(logps)
losses = []
for epoch in range(3):
    perm = torch.randperm(20)
    for i in range(0, 20, 7):
        idx = perm[i : i + 7]
        d, v = ac(obs[idx])
        ratio = (d.log_prob(acts[idx]) - logps[idx]).exp()
        clip = ratio.clamp(0.8, 1.2)
        loss = -torch.min(ratio * adv[idx], clip * adv[idx]).mean() + 0.5 * (v - ret[idx]).pow(2).mean() - 0.01 * d.entropy().mean()
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(ac.parameters(), 0.5)
        opt.step()
        losses.append(loss.item())
kl = (logps - ac(obs)[0].log_prob(acts)).mean().item()
print(round(kl, 8))
