from collections import deque


class Q(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, s):
        return self.f(s)


q, target = Q(), Q()
target.load_state_dict(q.state_dict())
memory = deque(maxlen=50)
opt = torch.optim.SGD(q.parameters(), lr=0.01, momentum=0.9)
W = torch.randn(3, 4)


def env_step(s, a):
    s2 = torch.tanh(s + 0.3 * W[a] + 0.1 * torch.randn(4))
    return s2, float(s2.sum() > 0), bool(s2[0] > 0.9)


# %%
s = torch.zeros(4)
eps = 1.0
losses = []
rewards = []
for t in range(40):
    if random.random() < eps:
        a = random.randrange(3)
    else:
        with torch.no_grad():
            a = q(s.unsqueeze(0)).argmax(1).item()
    s2, r, done = env_step(s, a)
    memory.append((s, a, r, s2, done))
    rewards.append(r)
    s = torch.zeros(4) if done else s2
    eps *= 0.95
    if len(memory) >= 10:
        batch = random.sample(list(memory), 9)
        S, A, R, S2, D = zip(*batch)
        S, S2 = torch.stack(S), torch.stack(S2)
        A, R, D = torch.tensor(A), torch.tensor(R), torch.tensor(D)
        qa = q(S).gather(1, A[:, None]).squeeze(1)
        with torch.no_grad():
            y = R + 0.9 * target(S2).max(1)[0] * (~D)
        loss = F.smooth_l1_loss(qa, y)
        opt.zero_grad()
        loss.backward()
        for p in q.parameters():
            p.grad.data.clamp_(-1, 1)
        opt.step()
        losses.append(loss.item())
    if t % 10 == 0:
        target.load_state_dict(q.state_dict())
print(sum(rewards), losses[-1])
