"""Predictions against bytes that are counted: on real tensors, on real ranks."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import nbpar.plan
from nbpar import parallel
from nbpar.display import split, whatif
from nbpar.errors import OptionError
from nbpar.plan.measure import call_of, measure
from nbpar.plan.mesh import mesh_of
from nbpar.plan.plan import KINDS, Plan
from nbpar.plan.whatif import answers
from tests.model.zoo import IMPORTS, MODELS
from tests.plan.counted import here, saving, sending
from tests.ranks import run_ranks


def program(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(IMPORTS + MODELS[name] + "opt = torch.optim.Adam(model.parameters(), lr=.01)\n", names)
    return names


def counted_fixed(names: dict[str, Any]) -> dict[str, int]:
    """Real bytes of a trained model and its optimiser; what lives elsewhere is meta, or is another rank's shard."""
    model, opt = names["model"], names["opt"]

    def size(values: Any) -> int:
        found = [here(v) for v in values if isinstance(v, Tensor)]
        return sum(v.numel() * v.element_size() for v in found if not v.is_meta)

    return {
        "weights": size(model.parameters()),
        "buffers": size(model.buffers()),
        "gradients": size(p.grad for p in model.parameters()),
        "state": size(tree_leaves(list(opt.state.values()))),
    }


@dataclass(frozen=True)
class Held:
    """On one rank: bytes by kind after a step, sent to others of its replica in a step, and where each layer was placed."""

    bytes: dict[str, int]
    sent: int
    placed: dict[str, int]
    lines: tuple[str, ...]


def steps(mode: str, options: dict[str, Any]) -> dict[str, Held]:
    return {name: step(name, mode, options) for name in MODELS}


def step(name: str, mode: str, options: dict[str, Any]) -> Held:
    """The third step is counted: the first ones are looked at by modes, and learnt from."""
    names = program(name)
    with parallel.mode(mode, options, names) as report:
        exec("for _ in range(2): loss = criterion(model(x), y); loss.backward(); opt.step()", names)
        with torch._C.DisableTorchFunction():  # the mode answers for tensors that live elsewhere
            held = counted_fixed(names)
            there = [*names["model"].parameters(), *names["model"].buffers(), names["x"]]
        exec("opt.zero_grad()", names)
        with sending() as sent:
            with saving(there) as saved:
                exec("out = model(x)", names)
            held["activations"] = saved.total()
            del there
            exec("loss = criterion(out, y); loss.backward(); opt.step(); del out, loss", names)
    return Held(held, sent.bytes, report.details.get("placed", {}), tuple(report.lines))


def close(plan: Plan, rank: int, held: Held, name: str) -> None:
    """All that a rank holds, and what of it is kept for the backward pass."""
    counted, predicted = held.bytes, plan.memory[rank]
    reads = plan.mesh.data > 1 and name == "branch"  # rows decide together, so no replica can have its own
    assert any("Branch runs whole on every rank" in line for line in held.lines) == reads
    assert any("reads values of its rows" in note for note in plan.notes) == reads
    assert sum(predicted.values()) == pytest.approx(sum(counted.values()), rel=0.1), (name, rank, predicted, counted)
    assert predicted["activations"] == pytest.approx(counted["activations"], rel=0.1), (name, rank)


@pytest.mark.parametrize(
    ("mode", "mesh", "how"),
    [
        ("data", "2x1", "layers"),
        ("model", "1x2", "layers"),
        ("model", "1x3", "layers"),
        ("hybrid", "2x2", "layers"),
        ("model", "1x2", "tensor"),
        ("model", "1x3", "tensor"),
        ("hybrid", "2x2", "tensor"),
    ],
)
def test_memory_is_predicted(mode: str, mesh: str, how: str) -> None:
    """On every rank; and what ranks of a replica send to each other."""
    options = {"data": {}, "model": {"how": how}, "hybrid": {"how": how, "mesh": mesh}}[mode]
    everywhere = run_ranks(mesh_of(mode, mesh).size, steps, mode, options)
    for name in MODELS:
        names = program(name)
        plan = nbpar.plan(names["model"], names["x"], mode, mesh, how=how, optimiser=names["opt"])
        assert not plan.figures.notes
        for rank, found in enumerate(everywhere):
            held = found[name]
            close(plan, rank, held, name)
            for kind in ("weights", "buffers", "gradients") if mode == "data" else ():
                assert plan.memory[rank][kind] == held.bytes[kind]
            if mode == "model":
                assert plan.sent[rank] == pytest.approx(held.sent, rel=0.1), (name, rank)
                assert how == "tensor" or {key.removeprefix("model."): owner for key, owner in held.placed.items()} == named(plan)


def named(plan: Plan) -> dict[str, int]:
    """The stage by layer, the model itself by its name in the program."""
    names = ["model" if layer.name == layer.kind else layer.name for layer in plan.layers]
    return dict(zip(names, plan.owners, strict=True))


def test_a_hybrid_rank_holds_its_stage_for_its_rows() -> None:
    names = program("resnet")
    alone = nbpar.plan(names["model"], names["x"], "model", 2)
    plan = nbpar.plan(names["model"], names["x"], "hybrid", "3x2")
    assert plan.rows == (2, 2, 2)
    assert plan.ranks_of(0) == (0, 2, 4)
    for rank in range(6):
        stage = alone.memory[rank % 2]
        assert {k: v for k, v in plan.memory[rank].items() if k != "activations"} == {
            k: v for k, v in stage.items() if k != "activations"
        }
        assert plan.memory[rank]["activations"] == pytest.approx(stage["activations"] / 3, rel=0.1)


def test_sent_bytes_are_the_gradients_and_what_crosses() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 4))
    x = torch.randn(8, 10)
    gradients = 4 * (10 * 20 + 20 + 20 * 4 + 4)
    data = nbpar.plan(model, x, "data", 2)
    assert data.sent == (gradients + 4 * 4 * 4, gradients + 4 * 4 * 4)  # and each rank's rows of the output
    cut = nbpar.plan(model, x, "model", 2)
    assert cut.owners == (0, 1)
    assert cut.sent == (8 * 20 * 4, 8 * 20 * 4)  # activations forward, their gradients backward


def test_billions_of_parameters_on_meta_tensors() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(20000, 20000, bias=False) for _ in range(5)])
        batch = torch.empty(64, 20000)
    plan = nbpar.plan(model, batch, "model", 5)
    assert sum(layer.parameters for layer in plan.layers) == 2_000_000_000
    assert plan.memory[2]["weights"] == 20000 * 20000 * 4
    assert plan.memory[2]["activations"] == 64 * 20000 * 4


def test_nothing_is_changed() -> None:
    names = program("branch")
    model, x = names["model"], names["x"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stream = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    nbpar.plan(model, x, "data", 2, optimiser=names["opt"])
    assert model.calls == 0
    assert not names["opt"].state
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(stream[0], torch.get_rng_state())
    assert stream[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_state_that_an_optimiser_holds_counts() -> None:
    names = program("mlp")
    model, x, opt = names["model"], names["x"], names["opt"]
    before = nbpar.plan(model, x, "data", 2, optimiser=opt)
    model(x).sum().backward()
    opt.step()
    assert nbpar.plan(model, x, "data", 2, optimiser=opt).memory == before.memory


def test_labels_are_not_arguments() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.zeros(4, 3), torch.zeros(4)
    assert call_of(model, [x, y]) == ((x,), {})
    assert call_of(model, {"input": x}) == ((), {"input": x})
    assert measure(model, [x, y]).rows == 4


def test_wrong_words_say_what_to_type() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(OptionError, match="Did you mean 'model'"):
        nbpar.plan(model, None, "modle")
    with pytest.raises(OptionError, match="2x2"):
        nbpar.plan(model, None, "hybrid", "2by2")
    with pytest.raises(OptionError, match="two axes"):
        nbpar.plan(model, None, "hybrid", 4)


def big(layers: int) -> Plan:
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(layers)])
    return nbpar.plan(model, torch.empty(512, 64, device="meta"), "hybrid", "8x8", micro=128)


def test_what_if_contains_the_plan_itself() -> None:
    plan = nbpar.plan(program("mlp")["model"], program("mlp")["x"], "hybrid", "2x2", micro=2)
    mine = [a for a in answers(plan) if (a.mesh, a.micro, a.schedule) == (plan.mesh, plan.micro, plan.schedule)]
    assert len(mine) == 1
    assert mine[0].waiting == plan.waiting
    assert mine[0].sent == max(plan.sent)
    assert mine[0].memory[1] == tuple(plan.memory[1][kind] for kind in KINDS)


def test_what_if_of_columns() -> None:
    """Shards of the same layers: as that plan by itself. Nothing of it can be cut into micro-batches."""
    model, x = program("gpt")["model"], program("gpt")["x"]
    plan = nbpar.plan(model, x, "hybrid", "2x2", how="tensor")
    found = {answer.mesh: answer for answer in answers(plan)}
    assert {answer.micro for answer in found.values()} == {1}
    for mesh in ("2x2", "1x4", "3x2"):
        other = nbpar.plan(model, x, "hybrid", mesh, how="tensor")
        assert found[other.mesh].memory == tuple(tuple(other.memory[k][kind] for kind in KINDS) for k in range(other.mesh.model))
        assert found[other.mesh].sent == max(other.sent)
    grid, page = whatif.predicted(plan)
    assert page["part"] == "shard" and page["now"][:2] == [2, 2]
    assert grid.rows == ("4x1 (data x model)", "2x2 (data x model)", "1x4 (data x model)")


def test_many_ranks_and_layers_stay_small() -> None:
    plan = big(200)
    grids = split.split(plan)
    assert len(grids[0].rows) <= split.MOST_ROWS
    size = sum(len(json.dumps(grid.state())) for grid in (*grids, split.memory(plan)))
    size += len(json.dumps(whatif.predicted(plan)[1]))
    assert size < 200_000
