class Seg(nn.Module):
    def __init__(self):
        super().__init__()
        self.d, self.m, self.u, self.o = (
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.ConvTranspose2d(8, 8, 2, 2),
            nn.Conv2d(9, 3, 1),
        )
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        h = F.relu(self.bn(self.d(x)))
        h = F.relu(self.m(h)) + h
        return self.o(torch.cat([self.u(h), x], 1))


seg = Seg()
opt = torch.optim.SGD(seg.parameters(), lr=0.1, momentum=0.9)
sched = torch.optim.lr_scheduler.PolynomialLR(opt, total_iters=6, power=0.9)
X, Y = torch.randn(13, 1, 8, 8), torch.randint(0, 3, (13, 8, 8))
Y[:, :2] = 255

# %%
hist = torch.zeros(3, 3, dtype=torch.long)
losses = []
best = 0.0
for epoch in range(3):
    seg.train()
    for x, y in zip(X.split(5), Y.split(5)):
        out = seg(x)
        loss = F.cross_entropy(out, y, ignore_index=255)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        losses.append(loss.item())
    seg.eval()
    with torch.no_grad():
        for x, y in zip(X.split(5), Y.split(5)):
            p = seg(x).argmax(1)
            k = y != 255
            hist += torch.bincount(3 * y[k] + p[k], minlength=9).reshape(3, 3)
    iou = hist.diag() / (hist.sum(0) + hist.sum(1) - hist.diag())
    if iou.mean() > best:
        best = iou.mean().item()
        state = copy.deepcopy(seg.state_dict())
seg.load_state_dict(state)
print(f"{best:.6f}", hist.tolist())
