from torch.utils.data import TensorDataset, DataLoader, random_split

ds = TensorDataset(torch.randn(60, 5), torch.randn(60, 1))
tr, va = random_split(ds, [45, 15], generator=torch.Generator().manual_seed(1))
tl, vl = DataLoader(tr, batch_size=16, shuffle=True), DataLoader(va, batch_size=16)
model = nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
sched = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5)


# %%
class EarlyStopping:
    def __init__(self, patience):
        self.patience, self.best, self.bad, self.state = patience, float("inf"), 0, None

    def __call__(self, v, m):
        if v < self.best - 1e-4:
            self.best, self.bad, self.state = v, 0, {k: t.clone() for k, t in m.state_dict().items()}
        else:
            self.bad += 1
        return self.bad >= self.patience


stop = EarlyStopping(2)
history = {"train": [], "val": []}
for epoch in range(6):
    model.train()
    run = 0.0
    for x, y in tl:
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        run += loss.item() * len(x)
    model.eval()
    v = 0.0
    with torch.inference_mode():
        for x, y in vl:
            v += F.mse_loss(model(x), y, reduction="sum").item()
    history["train"].append(run / 45)
    history["val"].append(v / 15)
    sched.step(v / 15)
    if stop(v / 15, model):
        break
model.load_state_dict(stop.state)
best = stop.best
lr = opt.param_groups[0]["lr"]
print(epoch, lr)
