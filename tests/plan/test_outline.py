"""The plan of a cell from what the cell reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nbpar.errors import OptionError
from nbpar.plan.outline import batch_of, of_notebook, outline


def notebook() -> dict[str, object]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = TensorDataset(torch.randn(20, 6), torch.randint(3, (20,)))
    return {"model": model, "opt": torch.optim.Adam(model.parameters()), "loader": DataLoader(data, 8), "epochs": 3}


def test_names_rows_and_ranks() -> None:
    plan = outline(notebook(), "data", 3, {})
    assert plan is not None
    assert [layer.name for layer in plan.layers] == ["0", "2"]
    assert plan.rows == (3, 3, 2)
    assert plan.ranks_of(0) == (0, 1, 2)


def test_where_ranks_placed_layers_counts() -> None:
    plan = outline(notebook(), "model", 2, {}, placed={"model.0": 1, "model.2": 0})
    assert plan is not None
    assert plan.owners == (1, 0)


def test_a_full_plan_foresees_waiting() -> None:
    plan = outline(notebook(), "model", 2, {"micro": 4}, full=True)
    assert plan is not None
    assert plan.figures.rows == 8
    assert 0 < plan.waiting < 0.5
    assert plan.memory[0]["state"] > 2 * plan.memory[0]["weights"]
    assert not plan.notes


def test_cells_without_models_have_none() -> None:
    assert outline({"x": 5}, "data", 2, {}) is None
    assert outline(notebook(), "each", 2, {}) is None


def test_a_loader_s_batch_draws_nothing() -> None:
    values = notebook()
    state = torch.get_rng_state()
    x, y = batch_of(values)
    assert (x.shape, y.shape) == ((8, 6), (8,))
    assert torch.equal(state, torch.get_rng_state())


def test_the_largest_model_is_planned() -> None:
    values = {**notebook(), "small": nn.Linear(2, 2)}
    assert sum(layer.parameters for layer in of_notebook(values, mode="model", size=2).layers) == 6 * 8 + 8 + 8 * 3 + 3
    assert sum(layer.parameters for layer in of_notebook(values, model="small").layers) == 6
    with pytest.raises(OptionError, match="Did you mean 'model'"):
        of_notebook(values, model="modle")


def test_models_in_other_objects_are_found_and_long_lists_are_not_searched() -> None:
    values = notebook()
    trainer = type("Trainer", (), {})()
    trainer.net = values.pop("model")
    plan = outline({"trainer": trainer, "numbers": [[k] for k in range(1_000_000)]}, "data", 2, {})
    assert plan is not None
    assert len(plan.layers) == 2
