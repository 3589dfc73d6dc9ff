"""A copy of what all ranks have is no longer used once its original is written to, by whatever way; and gradients that cells keep.

By name: lines of a cell. `x` is a leaf that all ranks have and that the model has been called with; then it is called again.
"""

from __future__ import annotations

from tests.cells import Cell

SETUP = """
model = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 1)); X = torch.rand(9, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
"""
TWICE = """
x = X.clone().requires_grad_(True)
first = model(x).sum(); before = first.item()
{lines}
out = model(x).sum(); out.backward(); after = out.item()
"""
WRITTEN = {
    "add_": "with torch.no_grad(): x.sub_(0.1)",
    "by another rank's value": "g, = torch.autograd.grad(first, [x])\nwith torch.no_grad(): x.sub_(g)",
    "data": "x.data.sub_(0.1)",
    "data, assigned": "x.data = x.data * 2",
    "data, exchanged": "x.data, X.data = X.data * 1.5, x.data",
    "detach": "x.detach().mul_(3)",
    "+=": "with torch.no_grad(): x += 0.1",
    "an item": "with torch.no_grad(): x[0] = 1.0",
    "index_put_": "with torch.no_grad(): x.index_put_((torch.tensor([1]),), torch.zeros(2))",
    "a view": "with torch.no_grad(): x.view(-1)[3:].mul_(2)",
    "rows": "with torch.no_grad():\n    for row in x: row.add_(0.1)\ndel row",
    "copy_": "with torch.no_grad(): x.copy_(X * 2)",
    "uniform_": "with torch.no_grad(): x.uniform_()",
    "init": "nn.init.normal_(x)",
    "out": "with torch.no_grad(): torch.add(X, 1, out=x)",
    "inplace": "with torch.no_grad(): F.relu(x.sub_(0.5), inplace=True)",
    "max_norm": "with torch.no_grad(): F.embedding(torch.tensor([0, 1]), x, max_norm=0.1)",
    "foreach": "with torch.no_grad(): torch._foreach_add_([x], 1.0)",
    "clipped": "x.grad = torch.ones_like(x); nn.utils.clip_grad_norm_([x], 0.1)\nwith torch.no_grad(): x -= x.grad",
    "vector_to_parameters": "nn.utils.vector_to_parameters(torch.ones(18), [x])",
    "an optimiser": "own = torch.optim.SGD([x], lr=0.1); x.grad = torch.ones_like(x); own.step()",
    "numpy": "x.detach().numpy()[...] = 0.5",
    "from_numpy": "a = np.ones((9, 2)); x = torch.from_numpy(a).requires_grad_(); before = model(x).sum().item(); a += 1",
    "as_tensor": "a = np.ones((9, 2)); x = torch.as_tensor(a).requires_grad_(); before = model(x).sum().item(); a += 1",
}
RETAINED = {
    "of an output": "out = model(X); out.retain_grad(); out.pow(2).mean().backward(); largest = out.grad.abs().max().item()",
    "of a hidden layer": "h = model[0](X); h.retain_grad(); model[2](model[1](h)).pow(2).mean().backward()",
    "of what comes before": "x = X * 1.0; x.requires_grad_(); y = x * 2; y.retain_grad(); model(y).pow(2).mean().backward()",
    "of all layers": "hs, x = [], X\nfor l in model:\n    x = l(x); x.retain_grad(); hs.append(x)\nx.pow(2).mean().backward()",
    "in a loop": "for _ in range(2):\n    h = model[0](X); h.retain_grad(); model[2](model[1](h)).mean().backward(); opt.step()",
    "and in a variable": "h = model[0](X); h.retain_grad(); model[2](model[1](h)).mean().backward(); g = h.grad; n = g.norm()",
}
VIEW = "of a view"
RETAINED[VIEW] = "h = model[0](X).view(3, 3, 16); h.retain_grad(); model[2](model[1](h)).mean().backward()"
CELLS = {f"written: {name}": Cell(name, SETUP, TWICE.format(lines=lines)) for name, lines in WRITTEN.items()}
CELLS |= {f"retained: {name}": Cell(name, SETUP, lines) for name, lines in RETAINED.items()}
