"""Models, a trainer and metrics of well-known libraries, in unchanged cells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook import Notebook

FIRST = """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch, transformers
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
ids = torch.randint(1, 97, (12, 10))
mask = torch.ones_like(ids)
mask[0, 6:] = mask[7, 3:] = 0
batches = [(ids[:8], torch.ones_like(ids[:8])), (ids[4:], mask[4:]), (ids[:8], mask[:8])]  # the first without padding
small = dict(vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
"""
TRAIN = """
losses = []
for x, m in batches:
    optimiser.zero_grad()
    result = model(input_ids=x, attention_mask=m, labels={labels})
    result.loss.backward()
    optimiser.step()
    losses.append(result.loss.item())
"""
TOKENS, CLASSES = "x.masked_fill(m == 0, -100)", "x[:, 0] % 3"
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config(vocab_size=97, n_positions=16, n_embd=16, n_layer=2, n_head=2)", TOKENS),
    "llama": ("LlamaForCausalLM", "LlamaConfig(**small, num_key_value_heads=1)", TOKENS),
    "bert": ("BertForSequenceClassification", "BertConfig(**small, num_labels=3, max_position_embeddings=16)", CLASSES),
}


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    with Notebook() as notebook:
        notebook.run(FIRST)
        yield notebook


def make(model: str, config: str) -> str:
    return f"""
torch.manual_seed(0)
model = transformers.{model}(transformers.{config}).train()
optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
"""


@pytest.mark.parametrize("mode", ["data -n 2", "data -n 3", "model -n 2"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_in_one_process(notebook: Notebook, name: str, mode: str) -> None:
    """In single precision: these models insist on it here and there."""
    model, config, labels = MODELS[name]
    train = TRAIN.format(labels=labels)
    notebook.run(make(model, config) + train + "expected, weights = losses, [p.detach().clone() for p in model.parameters()]")
    notebook.run(make(model, config))
    cell = notebook.run(f"%%parallel {mode}\n{train}", timeout=120)
    assert "runs whole" not in cell.stdout, cell.stdout
    assert notebook.value("max(abs(a - b) for a, b in zip(losses, expected))") < 1e-5
    assert notebook.value("max((a - b.detach()).abs().max().item() for a, b in zip(weights, model.parameters()))") < 1e-5


@pytest.mark.parametrize("mode", ["data -n 2", "model -n 2"])
def test_text_is_generated(notebook: Notebook, mode: str) -> None:
    """With a cache that the model is handed and changes."""
    notebook.run(make(*MODELS["gpt2"][:2]) + "generate = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)")
    notebook.run("model.eval()\nexpected = model.generate(ids[:, :4], **generate)")
    notebook.run(f"%%parallel {mode}\ntext = model.generate(ids[:, :4], **generate)", timeout=120)
    assert notebook.value("torch.equal(text, expected)")


def test_a_trainer_trains_as_in_one_process(notebook: Notebook) -> None:
    """It would share out batches and average gradients by itself, where it finds other processes."""
    train = """
arguments = transformers.TrainingArguments(
    folder, per_device_train_batch_size=6, num_train_epochs=1, report_to=[], save_strategy="no", use_cpu=True,
    disable_tqdm=True, optim="sgd", learning_rate=0.1,
)
rows = [{"input_ids": row, "labels": row} for row in ids]
trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
loss = trainer.train().training_loss
"""
    notebook.run("import tempfile; folder = tempfile.mkdtemp()" + make(*MODELS["gpt2"][:2]) + train + "expected = loss")
    notebook.run("del trainer" + make(*MODELS["gpt2"][:2]))
    notebook.run(f"%%parallel data -n 2\n{train}", timeout=120)
    assert notebook.value("abs(loss - expected)") < 1e-5


@pytest.mark.parametrize("mode", ["data -n 2", "model -n 2"])
def test_a_metric_counts_once(notebook: Notebook, mode: str) -> None:
    notebook.run("import torchmetrics\nnet = torch.nn.Linear(4, 3)\nx = torch.randn(8, 4)")
    notebook.run(f"""%%parallel {mode}
total = torchmetrics.SumMetric()
for _ in range(2):
    total.update(net(x).detach().abs().sum())
total = total.compute().item()
""")
    assert notebook.value("abs(total - 2 * net(x).abs().sum().item())") < 1e-4
