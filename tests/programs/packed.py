from torch.nn.utils.rnn import pad_sequence, pack_padded_sequence, pad_packed_sequence


class Tag(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.l, self.o = (
            nn.Embedding(20, 8, padding_idx=0),
            nn.LSTM(8, 8, batch_first=True, bidirectional=True),
            nn.Linear(16, 4),
        )

    def forward(self, x, n):
        p = pack_padded_sequence(self.e(x), n, batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.l(p)[0], batch_first=True, total_length=x.shape[1])
        return self.o(h)


tag = Tag()
opt = torch.optim.SGD(tag.parameters(), lr=0.1)
sents = [torch.randint(1, 20, (random.randint(2, 7),)) for _ in range(20)]
tags = [torch.randint(0, 4, (len(s),)) for s in sents]

# %%
losses = []
right = total = 0
for i in range(0, 20, 7):
    x, y = pad_sequence(sents[i : i + 7], batch_first=True), pad_sequence(tags[i : i + 7], batch_first=True, padding_value=-100)
    n = torch.tensor([len(s) for s in sents[i : i + 7]])
    lg = tag(x, n)
    loss = F.cross_entropy(lg.transpose(1, 2), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
    k = y != -100
    right += (lg.argmax(-1)[k] == y[k]).sum().item()
    total += k.sum().item()
print(right, total)
