class ASR(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.l, self.o = (
            nn.Conv1d(6, 12, 3, padding=1),
            nn.LSTM(12, 10, bidirectional=True, batch_first=True),
            nn.Linear(20, 5),
        )

    def forward(self, x):
        return self.o(self.l(F.relu(self.c(x.transpose(1, 2))).transpose(1, 2))[0]).log_softmax(-1)


asr = ASR()
opt = torch.optim.SGD(asr.parameters(), lr=0.05)
X = torch.randn(7, 12, 6)
lens, tl = torch.tensor([12, 10, 12, 9, 8, 11, 12]), torch.tensor([3, 2, 3, 1, 2, 3, 2])
Y = torch.randint(1, 5, (7, 3))

# %%
losses = []
for step in range(3):
    lp = asr(X)
    loss = F.ctc_loss(lp.transpose(0, 1), Y, lens, tl, blank=0, zero_infinity=True)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(asr.parameters(), 0.5)
    opt.step()
    losses.append(loss.item())
with torch.no_grad():
    best = asr(X).argmax(-1)
    decoded = []
    for i in range(7):
        seq = torch.unique_consecutive(best[i, : lens[i]])
        decoded.append([int(c) for c in seq if c != 0])
print(decoded)
