"""What else cells do, as text: each runs plainly and under the mode, and all that it prints and leaves is compared."""

SETUP = """
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
x, y = torch.randn(5, 6), torch.randint(4, (5,))
opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)

def step():
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    return loss
"""

# A heading names each snippet. Those under "own models" define a model in the cell and place it at its first call.
TEXT = """
## state_dict
step()
state = model.state_dict()
print(sum(v.double().sum().item() for v in state.values()))
model.load_state_dict(state)
print(step().item())
## load_plain_state
model.load_state_dict({k: torch.randn(v.shape) for k, v in model.state_dict().items()})
print(step().item())
## torch_save
step()
file = io.BytesIO(); torch.save(model.state_dict(), file); file.seek(0)
print(sum(v.sum().item() for v in torch.load(file).values()))
## save_module
step()
file = io.BytesIO(); torch.save(model, file); file.seek(0)
print(torch.load(file, weights_only=False)(x).sum().item())
## save_optimiser
step()
file = io.BytesIO(); torch.save(opt.state_dict(), file); file.seek(0)
loaded = torch.load(file)
opt.load_state_dict(loaded)
print(step().item(), sum(v["momentum_buffer"].sum().item() for v in loaded["state"].values()))
## optimiser_state_aliases
step()
saved = opt.state_dict()
opt.load_state_dict(saved)
step()
print(sum(v["momentum_buffer"].sum().item() for v in saved["state"].values()))
## deepcopy_ema
ema = copy.deepcopy(model)
step()
with torch.no_grad():
    for a, b in zip(ema.parameters(), model.parameters()): a.mul_(.9).add_(b, alpha=.1)
print(ema(x).sum().item(), model(x).sum().item())
## averaged_model
from torch.optim.swa_utils import AveragedModel
average = AveragedModel(model)
for _ in range(2): step(); average.update_parameters(model)
print(average(x).sum().item())
## parameters_to_vector
vector = nn.utils.parameters_to_vector(model.parameters())
print(vector.norm().item())
nn.utils.vector_to_parameters(vector * .5, model.parameters())
print(step().item())
## count_parameters
print(sum(p.numel() for p in model.parameters()), [tuple(p.shape) for p in model.parameters()])
## initialise
for p in model.parameters():
    if p.dim() > 1: nn.init.xavier_uniform_(p)
    else: nn.init.zeros_(p)
print(step().item())
## initialise_truncated
for layer in model:
    if isinstance(layer, nn.Linear): nn.init.trunc_normal_(layer.weight, std=.02); nn.init.orthogonal_(layer.weight)
print(step().item(), torch.rand(1).item())
## initialise_kaiming
for layer in model:
    if isinstance(layer, nn.Linear): nn.init.kaiming_uniform_(layer.weight); nn.init.normal_(layer.bias)
print(step().item(), torch.rand(1).item())
## data_normal
for p in model.parameters(): p.data.normal_(0, .02)
print(step().item(), torch.rand(1).item())
## nograd_update
with torch.no_grad():
    for p in model.parameters(): p.mul_(.5); p.copy_(p + torch.randn_like(p))
print(step().item())
## data_assign
for p in model.parameters(): p.data = p.data * .5
print(step().item())
## hand_written_update
for _ in range(3):
    loss = F.cross_entropy(model(x), y)
    model.zero_grad(); loss.backward()
    for p in model.parameters(): p.data -= .1 * p.grad
print(loss.item())
## print_parameters
print(model[4].weight, model[0].bias)
## histogram
step()
print([torch.histc(p, 4).tolist() for p in model.parameters()], np.histogram(model[0].weight.detach().numpy(), 3)[0])
## gradient_norm
F.cross_entropy(model(x), y).backward()
norm = sum(p.grad.norm() ** 2 for p in model.parameters()) ** .5
print(norm, norm.item())
## clip_norm
F.cross_entropy(model(x), y).backward()
print(nn.utils.clip_grad_norm_(model.parameters(), .1).item())
opt.step()
print(step().item())
## clip_value
F.cross_entropy(model(x), y).backward()
nn.utils.clip_grad_value_(model.parameters(), .01)
opt.step()
print(step().item())
## weight_decay_by_hand
loss = F.cross_entropy(model(x), y) + 1e-2 * sum((p ** 2).sum() for p in model.parameters())
loss.backward(); opt.step()
print(loss.item(), step().item())
## read_optimiser_state
step()
print([opt.state[p]["momentum_buffer"].abs().sum().item() for p in model.parameters()])
## adamw_state
opt = torch.optim.AdamW(model.parameters(), lr=.01)
for _ in range(3): step()
print([(s["step"].item(), s["exp_avg"].sum().item()) for s in opt.state.values()])
## adamw_foreach
opt = torch.optim.AdamW(model.parameters(), lr=.01, foreach=True)
for _ in range(3): step()
print([(s["step"].item(), s["exp_avg"].sum().item()) for s in opt.state.values()])
## adamw_fused
opt = torch.optim.AdamW(model.parameters(), lr=.01, fused=True)
for _ in range(3): step()
print([(s["step"].item(), s["exp_avg"].sum().item()) for s in opt.state.values()])
## schedulers
scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=5)
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
for _ in range(3): loss = step(); scheduler.step(); plateau.step(loss); print(loss.item(), scheduler.get_last_lr())
## gradscaler
scaler = torch.amp.GradScaler("cpu")
opt.zero_grad()
loss = F.cross_entropy(model(x), y)
scaler.scale(loss).backward()
scaler.unscale_(opt)
nn.utils.clip_grad_norm_(model.parameters(), 1.)
scaler.step(opt); scaler.update()
print(loss.item(), scaler.get_scale(), step().item())
## gradscaler_overflow
scaler = torch.amp.GradScaler("cpu")
loss = F.cross_entropy(model(x), y)
scaler.scale(loss).backward()
model[4].bias.grad[0] = float("inf")
scaler.step(opt); scaler.update()
print(scaler.get_scale(), step().item())
## autocast
model.float(); x = x.float()
with torch.autocast("cpu", dtype=torch.bfloat16):
    out = model(x)
    loss = F.cross_entropy(out, y)
loss.backward(); opt.step()
print(out.dtype, loss.item())
## autocast_operations
model.float(); x = x.float()
with torch.autocast("cpu", dtype=torch.bfloat16):
    out = F.linear(x, model[0].weight)
    out = torch.tanh(F.linear(out, model[2].weight))
    loss = (out @ model[4].weight.t()).float().sum()
loss.backward()
print(out.dtype, loss.item(), model[0].weight.grad.sum().item())
## checkpoint
from torch.utils.checkpoint import checkpoint
loss = F.cross_entropy(checkpoint(model, x, use_reentrant=False), y)
loss.backward()
print(loss.item(), sum(p.grad.sum().item() for p in model.parameters()))
## checkpoint_reentrant
from torch.utils.checkpoint import checkpoint
x.requires_grad_()
loss = F.cross_entropy(checkpoint(model, x, use_reentrant=True), y)
loss.backward()
print(loss.item(), sum(p.grad.sum().item() for p in model.parameters()))
## forward_hook
seen = []
handle = model[2].register_forward_hook(lambda module, args, out: seen.append(out.mean().item()))
step(); handle.remove(); step()
print(seen)
## backward_hook_reads
seen = []
model[2].register_full_backward_hook(lambda module, gin, gout: seen.append(gout[0].sum().item()))
step()
print(seen)
## backward_hook_changes
model[2].register_full_backward_hook(lambda module, gin, gout: (gin[0] * .5,))
step()
print(step().item())
## tensor_hook
hidden = model[0](x)
hidden.register_hook(lambda g: g * 2)
F.cross_entropy(model[1:](hidden), y).backward()
print(model[0].weight.grad.sum().item())
## parameter_hook
for p in model.parameters(): p.register_hook(lambda g: g.clamp(-.01, .01))
step()
print(step().item())
## parameter_hook_reads
seen = []
for p in model.parameters(): p.register_hook(lambda g: seen.append(g.norm().item()))
step()
print(sorted(seen))
## post_accumulate_hook
seen = []
for p in model.parameters(): p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm().item()))
F.cross_entropy(model(x), y).backward()
print(sorted(seen))
## compile
compiled = torch.compile(model, backend="eager")
loss = F.cross_entropy(compiled(x), y)
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## vmap
print(torch.vmap(lambda row: model(row))(x).sum().item())
## func_grad
weights = dict(model.named_parameters())
grads = torch.func.grad(lambda w: F.cross_entropy(torch.func.functional_call(model, w, (x,)), y))(weights)
print(sum(g.sum().item() for g in grads.values()))
## functional_call
weights = {k: v * .5 for k, v in model.named_parameters()}
loss = F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## change_dtype
model.to(torch.float32); model.to("cpu")
loss = F.cross_entropy(model(x.float()), y)
loss.backward(); opt.step()
print(loss.item(), next(model.parameters()).device, next(model.parameters()).dtype)
## freeze
for p in model[0].parameters(): p.requires_grad = False
step(); step()
print(step().item(), [p.grad is None for p in model.parameters()])
## freeze_late
for p in model[2:].parameters(): p.requires_grad_(False)
print(step().item(), step().item(), [p.grad is None for p in model.parameters()])
## add_layer
step()
model.append(nn.Tanh()); model.append(nn.Linear(4, 4))
opt.add_param_group({"params": model[-1].parameters()})
print(step().item(), step().item())
## swap_layer
step()
model[2] = nn.Linear(8, 8)
opt = torch.optim.SGD(model.parameters(), lr=.1)
print(step().item(), step().item())
## backward_gradient
out = model(x)
out.backward(torch.ones_like(out) * .5)
print(model[0].weight.grad.sum().item())
model(x).backward(gradient=torch.full((5, 4), .1))
print(model[0].weight.grad.sum().item())
## retain_graph
loss = F.cross_entropy(model(x), y)
loss.backward(retain_graph=True); loss.backward()
print(model[0].weight.grad.sum().item())
## two_losses
out = model(x)
a = out.pow(2).mean(); b = F.cross_entropy(out, y)
a.backward(retain_graph=True); b.backward()
print(model[0].weight.grad.sum().item())
## accumulate
for part, target in zip(x.split(2), y.split(2)): (F.cross_entropy(model(part), target) / 3).backward()
opt.step()
print(model[0].weight.sum().item())
## create_graph
x.requires_grad_()
out = model(x)
slope, = torch.autograd.grad(out.sum(), x, create_graph=True)
penalty = ((slope.norm(dim=1) - 1) ** 2).mean()
penalty.backward()
print(penalty.item(), model[0].weight.grad.sum().item())
## autograd_grad
loss = F.cross_entropy(model(x), y)
print([g.sum().item() for g in torch.autograd.grad(loss, list(model.parameters()))])
## saliency
x.requires_grad_()
model(x)[:, 0].sum().backward()
print(x.grad.abs().sum().item())
## maml
loss = F.cross_entropy(model(x), y)
weights = dict(model.named_parameters())
grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
fast = {k: v - .1 * g for (k, v), g in zip(weights.items(), grads)}
outer = F.cross_entropy(torch.func.functional_call(model, fast, (x,)), y)
outer.backward()
print(outer.item(), model[0].weight.grad.sum().item())
## hessian
print(torch.autograd.functional.hessian(lambda row: model(row[None]).sum(), x[0]).sum().item())
## detach
out = model(x)
cut = out.detach().clone().requires_grad_()
(cut ** 2).sum().backward()
out.backward(cut.grad)
print(model[0].weight.grad.sum().item(), (out - cut).abs().max().item())
## mask
out = model(x)
chosen = out[out > 0]
print(chosen.shape, chosen.sum().item())
chosen.sum().backward()
print(model[0].weight.grad.sum().item())
## mask_set
out = model(x).clone()
out[out < 0] = 0.
loss = out.sum()
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## nonzero
out = model(x)
print(torch.nonzero(out > 0).shape, torch.where(out > 0)[0].tolist(), out.topk(2).values.sum().item())
print(out.argsort(1).tolist(), torch.unique(out > 0).tolist())
## draw_from_values
print(torch.multinomial(F.softmax(model(x), 1), 1).tolist(), torch.bernoulli(torch.sigmoid(model(x))).sum().item())
print(torch.rand(1).item(), torch.distributions.Categorical(logits=model(x)).sample().tolist())
## draw_by_value
print(torch.poisson(model(x).exp()).sum().item(), F.rrelu(model(x), training=True).sum().item(), torch.rand(1).item())
## rsample
normal = torch.distributions.Normal(model(x), 1.)
z = normal.rsample()
loss = (z ** 2).mean() - normal.log_prob(z).mean()
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## to_python
out = model(x)
print(out.tolist()[0], out.detach().numpy().sum(), np.asarray(out.detach()).mean(), np.mean([v.item() for v in out[0]]))
print(float(out[0, 0]), int(out[0, 0] * 10), f"{out[0, 0]:.3f}", "%.3f" % out[0, 0], out[0, 0].detach(), out)
## tensor_of_tensors
out = model(x)
a = torch.tensor([out[0, 0], out[1, 1]]); b = torch.as_tensor([out[0, 0].item(), 1.]); c = torch.stack([out[0], out[1]])
print(a, b, c.sum().item(), max(out[0, 0], out[0, 1]).item(), sorted(out[0].tolist()))
## as_tensor_keeps_graph
loss = torch.as_tensor(F.cross_entropy(model(x), y))
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## slice_by_value
out = model(x)
k = out.argmax()
print(out.flatten()[:k].shape, out.flatten()[k].item())
## total_in_place
total = torch.zeros(())
for _ in range(3): total.add_(step().detach())
print(total.item())
several = torch.zeros(3)
for i in range(3): several[i] = step().detach()
print(several)
## total_added
total = torch.zeros(())
for _ in range(3): total += step().detach()
print(total.item())
accumulated = 0.
for _ in range(3): accumulated += step()
print(accumulated.item())
## index_replicated
table = torch.arange(20.).view(5, 4)
guess = model(x).argmax(1)
print(table[torch.arange(5), guess].tolist(), (guess == y).float().mean().item(), (guess == y).sum().item() / len(y))
## look_up
table = torch.randn(4, 3)
guess = model(x).argmax(1)
print(F.embedding(guess, table).sum().item(), table[guess].sum().item(), table.index_select(0, guess).sum().item())
print(torch.gather(table, 0, guess[:3, None]).tolist())
## allocate_and_fill
out = model(x)
z = torch.zeros(5, 4, device=out.device, dtype=out.dtype)
z[:, 1] = out[:, 0]
q = out.new_zeros(5)
q += out.sum(1)
loss = z.sum() + q.sum()
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## devices
out = model(x)
print(out.device, out.device == x.device, out.is_cuda, out.requires_grad, out.to(x.device).sum().item(), out.cpu().sum().item())
print(out.type(), out.is_meta, out.to(x).sum().item())
## custom_function
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a): ctx.save_for_backward(a); return a * a
    @staticmethod
    def backward(ctx, g): a, = ctx.saved_tensors; return g * 2 * a
loss = Square.apply(model(x)).sum()
loss.backward()
print(loss.item(), model[0].weight.grad.sum().item())
## custom_function_prints
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a): return a * 2
    @staticmethod
    def backward(ctx, g): print(g.sum().item()); return g * 2
loss = Double.apply(model(x)).sum()
loss.backward()
print(loss.item())
## comparisons
print(torch.equal(model(x), model(x)), torch.allclose(model(x), model(x)), bool((model(x) == model(x)).all()))
print(3 in y, model(x).isnan().any().item())
## linear_algebra
out = model(x)
print(torch.einsum("ij,ij->", out, out).item(), torch.linalg.svdvals(out).sum().item())
print(torch.linalg.matrix_rank(out).item(), torch.cov(out.T).trace().item())
## random_state
state = torch.get_rng_state()
a = F.dropout(model(x)).sum().item()
torch.set_rng_state(state)
b = F.dropout(model(x)).sum().item()
print(a == b, a, torch.rand(1).item())
## generator
generator = torch.Generator().manual_seed(3)
print(torch.multinomial(F.softmax(model(x), 1), 1, generator=generator).tolist(), torch.rand(2, generator=generator))
## lbfgs
opt = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
def closure():
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss
print(opt.step(closure).item(), opt.step(closure).item())
## adafactor
opt = torch.optim.Adafactor(model.parameters())
step()
print(step().item())
## thread
import threading
results = []
thread = threading.Thread(target=lambda: results.append(model(x).sum().item()))
thread.start(); thread.join()
print(results)
## pickle
import pickle
step()
back = pickle.loads(pickle.dumps({"model": model, "out": model(x).detach()}))
print(back["out"].sum().item(), back["model"](x).sum().item())
## copy_weight
weight = model[4].weight.detach().clone()
other = torch.zeros_like(weight); other.copy_(weight)
out = torch.empty(4, 8); torch.mul(weight, 2., out=out)
print(other.sum().item(), out.sum().item())
## write_to_numpy
model[0].weight.detach().numpy()[:] = 0.
print(step().item())
## vector_jacobian
print(torch.autograd.grad(model(x), list(model.parameters()), grad_outputs=torch.ones(5, 4))[0].sum().item())
## evaluate
model.eval()
with torch.no_grad(): hits = sum((model(part).argmax(1) == target).sum() for part, target in zip(x.split(2), y.split(2)))
print(hits.item() / len(y))
## inference_mode
with torch.inference_mode(): print(model(x).sum().item())
print(step().item())
## tied_weight_changes_between_calls
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.mid, self.back, self.out = nn.Linear(6, 6), nn.Linear(6, 60), nn.Linear(60, 6), nn.Linear(6, 6)
        self.out.weight = self.inp.weight
    def forward(self, x): return self.out(self.back(torch.tanh(self.mid(self.inp(x)))))
net = Tied()
print(net(x).sum().item())
with torch.no_grad(): net.inp.weight.mul_(.5)
print(net(x).sum().item())
net.out.weight.data = net.out.weight.data + 1
print(net(x).sum().item())
opt = torch.optim.SGD(net.parameters(), lr=.1)
for _ in range(2): net(x).pow(2).sum().backward(); net(x).sum().backward(); opt.step()
print(net(x).sum().item(), net.inp.weight is net.out.weight, net.inp.weight.grad.sum().item())
## write_through_views
weight = model[0].weight.data
weight.mul_(2); weight[0].zero_(); weight.view(-1)[3] = 7.
print(model(x).sum().item(), model[0].weight[0, 3].item(), step().item())
## statistics_read_between_calls
net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
for _ in range(3): net(x); print(net[1].running_mean.sum().item(), (net[3].running_var * 2).sum().item())
net[1].running_mean.zero_(); net[3].reset_running_stats()
net.eval()
print(net(x).sum().item())
## gradients_by_hand
F.cross_entropy(model(x), y).backward()
for p in model.parameters(): p.grad.clamp_(-.01, .01); p.grad.data.mul_(2)
opt.step(); opt.zero_grad(set_to_none=False)
print([p.grad.sum().item() for p in model.parameters()])
for p in model.parameters(): p.grad = torch.ones_like(p)
opt.step()
print(model(x).sum().item())
## change_result_in_place
out = model(x)
out += 1
out.mul_(2)
out[0] = 0
out.sum().backward()
print(out.sum().item(), model[0].weight.grad.sum().item())
## foreach_ema
ema = [p.detach().clone() for p in model.parameters()]
for _ in range(2): step(); torch._foreach_lerp_(ema, list(model.parameters()), .5)
print(sum(e.sum().item() for e in ema))
## clip_foreach
F.cross_entropy(model(x), y).backward()
print(nn.utils.clip_grad_norm_(model.parameters(), .1, foreach=True, error_if_nonfinite=True).item())
opt.step()
print(step().item())
## copy_optimiser
step()
saved = copy.deepcopy(opt.state_dict()); weights = copy.deepcopy(model.state_dict())
a = step().item(); step()
opt.load_state_dict(saved); model.load_state_dict(weights)
print(a == step().item(), a)
## update_statistics
from torch.optim.swa_utils import update_bn
net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
update_bn([x, x * 2, x + 1], net)
net.eval()
print(net(x).sum().item())
## early_stop
best, patience = float("inf"), 0
for epoch in range(20):
    loss = step()
    if loss < best - .1: best, patience = loss.item(), 0
    else: patience += 1
    if patience == 3: break
print(epoch, best)
## teacher_and_student
teacher = copy.deepcopy(model).eval().requires_grad_(False)
for _ in range(2):
    opt.zero_grad()
    with torch.no_grad(): soft = teacher(x).softmax(1)
    loss = F.kl_div(model(x).log_softmax(1), soft, reduction="batchmean") + F.cross_entropy(model(x), y)
    loss.backward(); opt.step()
print(loss.item())
## dropout_everywhere
net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(.5), nn.Linear(8, 8), nn.Dropout(.3), nn.Linear(8, 4))
opt = torch.optim.Adam(net.parameters())
for _ in range(3):
    loss = F.cross_entropy(F.dropout(net(x + torch.randn_like(x)), .1), y)
    opt.zero_grad(); loss.backward(); opt.step()
print(loss.item(), torch.rand(1).item())
## transposed_values
out = model(x).t()
print(out.contiguous().view(-1)[:3].tolist(), out.is_contiguous(), out.stride())
hidden = model[1](model[0](x)).t().contiguous()
hidden.mul_(2)
model[2:](hidden.t()).sum().backward()
print(model[0].weight.grad.sum().item())
## inplace_activation
net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), nn.Linear(8, 4))
hidden = net[0](x)
out = net[1](hidden) + hidden
loss = net[2](out).sum()
loss.backward()
print(loss.item(), hidden.sum().item())
## stochastic_depth
import random as R
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x): return x if R.random() < .5 else x + self.l(x)
net = nn.Sequential(B(), B(), B(), B())
for _ in range(4): print(net(x).sum().item())
## counter
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6); self.n = 0
    def forward(self, x): self.n += 1; return self.l(x) * self.n
net = nn.Sequential(B(), B())
for _ in range(3): print(net(x).sum().item())
print([b.n for b in net])
## global_list
log = []
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x): out = self.l(x); log.append(1); return out
net = nn.Sequential(B(), B())
for _ in range(3): net(x)
print(len(log))
## own_list
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6); self.log = []
    def forward(self, x): out = self.l(x); self.log.append(out.shape[0]); return out
net = nn.Sequential(B(), B())
for _ in range(3): net(x)
print([len(b.log) for b in net])
## print_inside
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x): out = self.l(x); print("inside", tuple(out.shape)); return out
net = nn.Sequential(B(), B())
net(x)
## global_knob
scale = 1.
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x): return self.l(x) if scale < 2 else self.l(x)[:, :3]
net = nn.Sequential(B(), nn.Linear(6, 6))
print(net[0](x).sum().item())
scale = 3.
print(net[0](x).shape, net[0](x).sum().item())
## branch_on_value
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x):
        out = self.l(x)
        return out * 2 if out.sum() > 0 else out - 1
net = nn.Sequential(B(), B())
loss = net(x).sum()
loss.backward()
print(loss.item(), net[0].l.weight.grad.sum().item())
## detached_input
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x): return self.l(x.detach())
net = nn.Sequential(nn.Linear(6, 6), B())
loss = net(x).sum()
loss.backward()
print(loss.item(), net[0].weight.grad, net[1].l.weight.grad.sum().item())
## unused_output
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6); self.k = nn.Linear(6, 6)
    def forward(self, x): return self.l(x), self.k(x.detach())
net = nn.Sequential(nn.Linear(6, 6), B())
a, b = net(x)
b.sum().backward()
print(net[0].weight.grad, net[1].l.weight.grad, net[1].k.weight.grad.sum().item())
## state_on_module
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6); self.aux = None
    def forward(self, x): out = self.l(x); self.aux = out.pow(2).mean(); return out
net = nn.Sequential(B(), B())
loss = net(x).sum() + net[0].aux + net[1].aux
loss.backward()
print(loss.item(), net[0].l.weight.grad.sum().item())
## batchnorm
net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.BatchNorm1d(8))
loss = net(x).pow(3).sum()
loss.backward()
net.eval()
print(net(x).sum().item(), net[1].running_mean.sum().item(), net[4].num_batches_tracked.item())
## parametrised
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
net = nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.Tanh(), weight_norm(nn.Linear(6, 6)))
loss = net(x).sum()
loss.backward()
print(loss.item(), net[0].parametrizations.weight.original.grad.sum().item())
## sparse_gradients
net = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Linear(6, 3))
opt = torch.optim.SGD(net.parameters(), lr=.1)
net(y).sum().backward(); opt.step()
print(net(y).sum().item())
## packed_sequence
net = nn.LSTM(6, 5)
first = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
packed = nn.utils.rnn.pack_padded_sequence(first(torch.randn(4, 3, 6)), torch.tensor([4, 3, 2]))
out, _ = net(packed)
out, lengths = nn.utils.rnn.pad_packed_sequence(out)
loss = out.sum()
loss.backward()
print(loss.item(), lengths.tolist(), first[0].weight.grad.sum().item())
## module_called_twice
net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
loss = net(net(x)).sum()
loss.backward()
print(loss.item(), net[0].weight.grad.sum().item())
## only_forward
net = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
out = x
for layer in net: out = layer.forward(out)
print(out.sum().item())
## penalty_before_call
net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
penalty = sum(p.pow(2).sum() for p in net.parameters())
loss = net(x).sum() + penalty
loss.backward()
print(loss.item(), net[0].weight.grad.sum().item())
## hook_before_call
net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
for p in net.parameters(): p.register_hook(lambda g: g.clamp(-.1, .1))
net(x).sum().backward()
print([p.grad.sum().item() for p in net.parameters()])
## experts
class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 3); self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
    def forward(self, x):
        which = self.gate(x).argmax(1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = which == i
            if rows.any(): out[rows] = expert(x[rows])
        return out
net = Mixture()
loss = net(x).sum()
loss.backward()
print(loss.item(), [e.weight.grad is None for e in net.experts])
## knobs_of_layers_turned
class B(nn.Module):
    def __init__(self):
        super().__init__(); self.l = nn.Linear(6, 6); self.scale, self.rates, self.names = 1., [1., 2.], {"by": 1.}
    def forward(self, x):
        out = self.l(x) * self.scale * self.rates[0] * self.names["by"]
        return F.dropout(out, .5) if self.rates[1] > 4 else out
net = nn.Sequential(B(), B(), nn.Dropout(.5), nn.Linear(6, 6))
net(x).sum().backward()
net[0].scale = .5; print(net(x).sum().item())
net[1].rates[0] = .7; print(net(x).sum().item())
net[1].rates[1] = 5.; print(net(x).sum().item())
net[0].names["by"] = .6; net[2].p = .2; print(net(x).sum().item())
net.eval(); print(net(x).sum().item())
net(x).pow(2).mean().backward()
print(net[0].l.weight.grad.sum().item())
## layers_replaced_and_watched
class B(nn.Module):
    def __init__(self): super().__init__(); self.l = nn.Linear(6, 6)
    def forward(self, x): return torch.tanh(self.l(x))
net = nn.Sequential(B(), B())
print(net(x).sum().item())
net[0].l = nn.Linear(6, 6); print(net(x).sum().item())
net[1].l = net[0].l; print(net(x).sum().item())
net[1].l = nn.Identity(); print(net(x).sum().item())
seen = net[0].register_forward_hook(lambda module, given, out: out * 2); print(net(x).sum().item())
seen.remove(); print(net(x).sum().item())
net[0].l.weight.requires_grad_(False); net(x).pow(2).sum().backward()
print(net[0].l.weight.grad, net[0].l.bias.grad.sum().item())
net.double(); print(net(x.double()).sum().item())
seen = []
net[1].forward = lambda value: seen.append(value.shape) or value * 3
print(net(x.double()).sum().item(), seen)
## step_that_fails
step(); step()
opt.param_groups[0]["weight_decay"] = "much"
try: step()
except TypeError as error: print(type(error).__name__)
print(model[4].weight.sum().item(), (model[0].weight * 2).sum().item(), (model[4].weight.grad + 1).sum().item())
opt.param_groups[0]["weight_decay"] = .2
for _ in range(2): print(step().item())
## schedule_and_new_parameters
schedule = torch.optim.lr_scheduler.StepLR(opt, 1, .5)
for _ in range(3): print(step().item()); schedule.step()
more = nn.Linear(6, 4); more(x)
opt.add_param_group({"params": more.parameters(), "momentum": 0.})
for _ in range(3):
    opt.zero_grad(); loss = F.cross_entropy(model(x) + more(x), y); loss.backward(); opt.step(); print(loss.item())
opt.param_groups[0]["momentum"] = 0.; opt.param_groups[1]["momentum"] = .5
for _ in range(3):
    opt.zero_grad(); loss = F.cross_entropy(model(x) + more(x), y); loss.backward(); opt.step(); print(loss.item())
print(more.weight.sum().item())
## listeners_of_a_step
count = []
before = opt.register_step_pre_hook(lambda o, *_: count.append(model[0].weight.sum().item()))
after = opt.register_step_post_hook(lambda o, *_: count.append(model[4].weight.sum().item()))
for _ in range(3): step()
before.remove(); after.remove()
step(); print(count)
## lazy
net = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 6))
print(net(x).sum().item())
## gan
G, D = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
og, od = torch.optim.SGD(G.parameters(), lr=.1), torch.optim.SGD(D.parameters(), lr=.1)
for _ in range(2):
    fake = G(torch.randn(5, 3))
    od.zero_grad(); (D(fake.detach()).mean() - D(x).mean()).backward(); od.step()
    og.zero_grad(); (-D(fake).mean()).backward(); og.step()
print(D(fake).sum().item())
## raises
try:
    model(torch.randn(5, 7))
except RuntimeError as error:
    print(type(error).__name__)
print(step().item())
## views_left
step()
rows = [model[0].weight.data, model[0].weight.data[0]]
last = model(x)
parts = list(last)
"""


def parse(text: str) -> dict[str, str]:
    cells: dict[str, str] = {}
    for block in text.split("\n## ")[1:]:
        name, _, cell = block.partition("\n")
        cells[name.strip()] = cell + "\n"
    return cells


SNIPPETS = parse(TEXT)
CASES = {name: (SETUP, cell) for name, cell in SNIPPETS.items()}
