class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1).to(g.dtype)


class Bin(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 6) * 0.1)
        self.o = nn.Linear(12, 2)

    def forward(self, x):
        return self.o(Sign.apply(F.linear(x, Sign.apply(self.w)) * 0.2))


m = Bin()
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, Y = torch.randn(26, 6), torch.randint(0, 2, (26,))

# %%
losses = []
for x, y in zip(X.split(9), Y.split(9)):
    loss = F.cross_entropy(m(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    m.w.data.clamp_(-1, 1)
    losses.append(loss.item())
