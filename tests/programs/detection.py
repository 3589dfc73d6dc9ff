class Det(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.cls, self.box = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        h = self.c(x)
        return self.cls(h).flatten(2).transpose(1, 2), self.box(h).flatten(2).transpose(1, 2)


det = Det()
opt = torch.optim.SGD(det.parameters(), lr=0.05)
g = torch.arange(4.0) * 4
anchors = torch.stack([g.repeat(4), g.repeat_interleave(4), g.repeat(4) + 6, g.repeat_interleave(4) + 6], 1)
imgs = torch.randn(7, 3, 16, 16)
gts = [torch.tensor([[1.0, 1.0, 7.0, 7.0], [5.0, 5.0, 12.0, 12.0]])[: 1 + i % 2] for i in range(7)]
labs = [torch.tensor([1, 2])[: 1 + i % 2] for i in range(7)]


def iou(a, b):
    lt = torch.max(a[:, None, :2], b[None, :, :2])
    rb = torch.min(a[:, None, 2:], b[None, :, 2:])
    inter = (rb - lt).clamp(min=0).prod(-1)
    area = lambda t: (t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1])
    return inter / (area(a)[:, None] + area(b)[None] - inter)


# %%
losses = []
for step in range(3):
    cls, box = det(imgs)
    tot_c, tot_b, npos = 0, 0, 0
    for i in range(len(imgs)):
        o = iou(anchors, gts[i])
        best, which = o.max(1)
        t = torch.zeros(16, dtype=torch.long)
        pos = best > 0.3
        t[pos] = labs[i][which[pos]]
        tot_c = tot_c + F.cross_entropy(cls[i], t, reduction="sum")
        if pos.any():
            tot_b = tot_b + F.smooth_l1_loss(box[i][pos], (gts[i][which[pos]] - anchors[pos]) / 6, reduction="sum")
        npos += int(pos.sum())
    loss = (tot_c + tot_b) / max(npos, 1)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
with torch.no_grad():
    cls, box = det(imgs)
    score, k = cls.softmax(-1)[..., 1:].max(-1)
    keep = []
    for i in range(len(imgs)):
        order = score[i].argsort(descending=True).tolist()
        chosen = []
        b = anchors + 6 * box[i]
        while order:
            j = order.pop(0)
            chosen.append(j)
            order = [q for q in order if iou(b[j][None], b[q][None])[0, 0] < 0.5]
        keep.append(chosen)
print(keep[0], npos)
