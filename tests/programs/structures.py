from dataclasses import dataclass
from typing import NamedTuple, Optional


class Out(NamedTuple):
    logits: torch.Tensor
    hidden: tuple
    loss: Optional[torch.Tensor] = None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, batch, labels=None, scale=1.0):
        h = torch.tanh(self.a(batch["x"]) + self.b(batch["extra"]["z"])) * scale
        lg = self.o(h)
        return Out(lg, (h, [h * 2]), F.cross_entropy(lg, labels) if labels is not None else None)


net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.1)
data = [{"x": torch.randn(n, 4), "extra": {"z": torch.randn(n, 3)}, "y": torch.randint(0, 3, (n,))} for n in (9, 9, 7)]

# %%
losses, hs = [], 0
for b in data:
    out = net({k: v for k, v in b.items() if k != "y"}, labels=b["y"], scale=0.5)
    loss = out.loss + 0.01 * out.hidden[1][0].pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
    hs += out.hidden[0].sum().item()
preds = torch.cat([net(b).logits.argmax(-1) for b in data])
