class TinyGPT(nn.Module):
    def __init__(self, v=20, d=16, L=12):
        super().__init__()
        self.tok, self.pos = nn.Embedding(v, d), nn.Parameter(torch.randn(L, d) * 0.1)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 2, 32, dropout=0.0, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(d, v)

    def forward(self, i):
        T = i.shape[1]
        m = torch.triu(torch.full((T, T), float("-inf")), 1)
        return self.head(self.blocks(self.tok(i) + self.pos[:T], mask=m))


gpt = TinyGPT()
opt = torch.optim.SGD(gpt.parameters(), lr=0.1)
text = torch.randint(0, 20, (200,))

# %%
losses = []
for step in range(3):
    ix = torch.randint(0, 180, (8,))
    xb = torch.stack([text[i : i + 12] for i in ix])
    yb = torch.stack([text[i + 1 : i + 13] for i in ix])
    lg = gpt(xb)
    loss = F.cross_entropy(lg.view(-1, 20), yb.view(-1))
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()
    losses.append(loss.item())
gpt.eval()
out = torch.zeros(3, 1, dtype=torch.long)
with torch.no_grad():
    for _ in range(8):
        lg = gpt(out[:, -12:])[:, -1] / 0.8
        v, _ = lg.topk(5)
        lg[lg < v[:, [-1]]] = -float("inf")
        nxt = torch.multinomial(lg.softmax(-1), 1)
        out = torch.cat([out, nxt], 1)
gpt.train()
print(out.tolist())
