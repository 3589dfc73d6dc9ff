from torch.nn.utils.parametrizations import weight_norm, spectral_norm

torch.manual_seed(3)
m = nn.Sequential(weight_norm(nn.Linear(6, 12)), nn.Tanh(), spectral_norm(nn.Linear(12, 12)), nn.Tanh(), nn.Linear(12, 2))
opt = torch.optim.SGD(m.parameters(), lr=0.1)
X, Y = torch.randn(26, 6), torch.randn(26, 2)

# %%
losses = []
for x, y in zip(X.split(9), Y.split(9)):
    loss = F.mse_loss(m(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
sigma = torch.linalg.svdvals(m[2].weight.detach())[0].item()
