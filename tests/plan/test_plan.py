"""Predictions against bytes that are counted: on real tensors, on real ranks."""

from __future__ import annotations

import json
import random
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
from nbpar.parallel.tensor.sharded import Sharded
from nbpar.plan.measure import call_of, measure
from nbpar.plan.plan import KINDS, Plan
from nbpar.plan.whatif import answers
from tests.model.zoo import IMPORTS, MODELS
from tests.ranks import run_ranks


def program(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(IMPORTS + MODELS[name] + "opt = torch.optim.Adam(model.parameters(), lr=.01)\n", names)
    return names


def counted_activations(model: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that one forward pass keeps, but those that are there anyway."""
    known = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in known:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = model(x)
    del result
    return sum(value.untyped_storage().nbytes() for value in kept.values())


def counted_fixed(names: dict[str, Any]) -> dict[str, int]:
    """Real bytes of a trained model and its optimiser; what lives elsewhere is meta, or is another rank's shard."""
    model, opt = names["model"], names["opt"]

    def here(value: Tensor) -> Tensor:
        return value._shards.data if isinstance(value, Sharded) else value

    def size(values: Any) -> int:
        found = [here(v) for v in values if isinstance(v, Tensor)]
        return sum(v.numel() * v.element_size() for v in found if not v.is_meta)

    return {
        "weights": size(model.parameters()),
        "buffers": size(model.buffers()),
        "gradients": size(p.grad for p in model.parameters()),
        "state": size(tree_leaves(list(opt.state.values()))),
    }


@pytest.mark.parametrize("name", MODELS)
def test_memory_is_predicted_for_data(name: str) -> None:
    names = program(name)
    model, x, y, opt = (names[key] for key in ("model", "x", "y", "opt"))
    plan = nbpar.plan(model, x, "data", 2, optimiser=opt)
    assert not plan.notes
    names["criterion"](model(x), y).backward()
    opt.step()
    first = 0
    for rank, rows in enumerate(plan.rows):
        counted = {**counted_fixed(names), "activations": counted_activations(model, x[first : first + rows])}
        predicted = plan.memory[rank]
        assert sum(predicted.values()) == pytest.approx(sum(counted.values()), rel=0.1)
        for kind in ("weights", "buffers", "gradients"):
            assert predicted[kind] == counted[kind]
        first += rows


def steps(names: list[str], mode: str, options: dict[str, Any]) -> dict[str, Any]:
    """On a rank: what it holds after a step, by kind, and where each layer was placed."""
    return {name: step(name, mode, options) for name in names}


def step(name: str, mode: str, options: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    names = program(name)
    with parallel.mode(mode, options, names) as report:
        exec("loss = criterion(model(x), y); loss.backward(); opt.step()", names)
        with torch._C.DisableTorchFunction():  # the mode answers for tensors that live elsewhere
            held = counted_fixed(names)
    return held, report.details.get("placed", {})


def close(plan: Plan, rank: int, held: dict[str, int], name: str) -> None:
    fixed = {kind: amount for kind, amount in plan.memory[rank].items() if kind != "activations"}
    assert sum(fixed.values()) == pytest.approx(sum(held.values()), rel=0.1), (name, rank, fixed, held)


def test_memory_is_predicted_for_model() -> None:
    """Weights, gradients and optimiser state on real ranks; activations are the layers', which the data test counts."""
    everywhere = run_ranks(2, steps, list(MODELS), "model", {})
    for name in MODELS:
        names = program(name)
        plan = nbpar.plan(names["model"], names["x"], "model", 2, optimiser=names["opt"])
        assert sum(a["activations"] for a in plan.memory) == pytest.approx(counted_activations(names["model"], names["x"]), rel=0.1)
        for rank in range(2):
            held, placed = everywhere[rank][name]
            assert {key.removeprefix("model."): owner for key, owner in placed.items()} == named(plan)
            close(plan, rank, held, name)


def test_memory_is_predicted_for_a_mesh() -> None:
    """A replica's stages keep what its rows need."""
    everywhere = run_ranks(4, steps, list(MODELS), "hybrid", {"mesh": "2x2"})
    for name in MODELS:
        names = program(name)
        model, x = names["model"], names["x"]
        plan = nbpar.plan(model, x, "hybrid", "2x2", optimiser=names["opt"])
        for rank in range(4):
            close(plan, rank, everywhere[rank][name][0], name)
        first = 0
        for replica, rows in enumerate(plan.rows):
            counted = counted_activations(model, x[first : first + rows])
            assert sum(plan.memory[2 * replica + stage]["activations"] for stage in range(2)) == pytest.approx(counted, rel=0.1)
            first += rows


@pytest.mark.parametrize(("mode", "mesh", "ranks"), [("model", 2, 2), ("model", 3, 3), ("hybrid", "2x2", 4)])
def test_memory_is_predicted_for_columns(mode: str, mesh: Any, ranks: int) -> None:
    everywhere = run_ranks(ranks, steps, list(MODELS), mode, {"how": "tensor"} | ({"mesh": mesh} if mode == "hybrid" else {}))
    for name in MODELS:
        names = program(name)
        plan = nbpar.plan(names["model"], names["x"], mode, mesh, how="tensor", optimiser=names["opt"])
        for rank in range(ranks):
            close(plan, rank, everywhere[rank][name][0], name)


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


def test_many_ranks_and_layers_stay_small() -> None:
    plan = big(200)
    grids = split.split(plan)
    assert len(grids[0].rows) <= split.MOST_ROWS
    size = sum(len(json.dumps(grid.state())) for grid in (*grids, split.memory(plan)))
    size += len(json.dumps(whatif.predicted(plan)[1]))
    assert size < 200_000
