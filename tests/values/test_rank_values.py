"""What differs between ranks: one value per rank in the notebook, its own again on each."""

import copy
import os
import pickle

import pytest

from nbpar.errors import CannotTravel
from nbpar.values import RankValues

RANK = "import os; r = int(os.environ['RANK'])\n"


def test_values_by_rank(world):
    world.run("import os; r = int(os.environ['RANK']); same = [1, 2]; x = [r] * 2")
    r, x, same = (world.namespace[name] for name in ("r", "x", "same"))
    assert isinstance(r, RankValues) and list(r) == [0, 1] and r[1] == 1 and len(r) == 2
    assert r.sum() == 1 and r.mean() == 0.5 and r.cat() == [0, 1] and x.cat() == [0, 0, 1, 1]
    assert repr(r) == "RankValues(0: 0, 1: 1)" and same == [1, 2]
    with pytest.raises(IndexError, match="one for each of"):
        r[2]


def test_each_rank_reads_its_own_again(world):
    world.run(RANK + "x = [r]; pair = (x, x)")
    for _ in range(2):
        world.run("ok = x == [int(__import__('os').environ['RANK'])] and pair[0] is pair[1] is x")
        assert world.namespace["ok"] is True
    x = world.namespace["x"]
    world.run("y = len(x)")
    assert world.namespace["x"] is x and world.namespace["y"] == 1
    world.run("x.append(5)")
    assert [*world.namespace["x"]] == [[0, 5], [1, 5]]
    world.run("x[:] = [7]")
    assert world.namespace["x"] == [7]


def test_the_table_survives_variables_that_differ(world):
    world.namespace["data"] = list(range(1000))
    world.run(RANK + "x = data[r]")
    world.run("x = data[r + 1]")
    assert world.packed.bytes < 600
    assert list(world.namespace["x"]) == [1, 2]


def test_known_objects_are_referred_to(world):
    world.namespace["data"] = [[0], [1]]
    world.run(RANK + "mine = data[r]")
    assert world.namespace["mine"][1] is world.namespace["data"][1]
    world.run("mine.append('x') if r == 0 else None; data[1].append('y')")
    data = world.namespace["data"]
    assert isinstance(data, RankValues) and [list(d[0]) for d in data] == [[0, "x"], [0]]


def test_a_slot_that_differs(world):
    results, d = world.namespace["results"], world.namespace["d"] = [], {"k": 1}
    world.namespace["results"] = results
    world.run(RANK + "results.append(r); results.append('same'); d['k'] = [r]")
    assert world.namespace["results"] is results and isinstance(results[0], RankValues)
    assert list(results[0]) == [0, 1] and results[1] == "same"
    assert [*d["k"]] == [[0], [1]]
    world.run("ok = results[0] == r and d['k'] == [r]; results.append(2)")
    assert world.namespace["ok"] is True and results[2] == 2 and list(results[0]) == [0, 1]


def test_a_container_of_another_shape(world):
    results = world.namespace["results"] = [1]
    world.namespace["holder"] = {"results": results}
    world.run(RANK + "if r == 0: results.append(5)", reads="results holder")
    assert results == [1]
    assert [*world.namespace["results"]] == [[1, 5], [1]]
    assert world.namespace["holder"][0]["results"] is world.namespace["results"][0]


def test_a_model_that_came_to_differ(world):
    world.do(
        "import torch\nmodel = torch.nn.Linear(2, 2); opt = torch.optim.SGD(model.parameters(), 0.1); x = torch.ones(1, 2)\n"
        "other = torch.nn.Linear(2, 2)\ndef loss_of(): return model(x).sum()"
    )
    ns = world.namespace
    model, before = ns["model"], ns["model"].weight.clone()
    world.run(
        RANK + "loss = loss_of() * r; loss.backward(); opt.step(); n = 3; other.weight.data.zero_()",
        reads="model opt x loss_of other",
    )
    assert isinstance(ns["model"], RankValues) and isinstance(ns["opt"], RankValues) and ns["n"] == 3
    assert not isinstance(ns["loss_of"], RankValues) and ns["other"].weight.sum() == 0
    assert (model.weight == before).all() and (ns["model"][0].weight == before).all()
    assert not (ns["model"][1].weight == before).all()
    assert ns["opt"][1].param_groups[0]["params"][0] is ns["model"][1].weight
    world.run("ok = opt.param_groups[0]['params'][0] is model.weight; w = model.weight[0, 0].item()")
    assert ns["ok"] is True and [*ns["w"]] == [m.weight[0, 0].item() for m in ns["model"]]


def test_a_variable_on_some_ranks_only(world):
    world.run(RANK + "if r == 1: late = 'here'")
    assert world.namespace["late"].ranks == [1] and world.namespace["late"][1] == "here"
    assert "late exists on ranks [1] only." in world.merged.notes
    world.run("try: late.upper(); seen = True\nexcept Exception as error: seen = str(error)")
    assert world.namespace["seen"][1] is True and "no value for rank 0" in world.namespace["seen"][0]


def test_deleted_on_some_ranks_only(world):
    world.namespace["x"] = [1]
    world.run(RANK + "if r == 0: del x")
    assert world.namespace["x"] == [1] and "x was deleted on some ranks only" in world.merged.notes[0]


def test_saving(world):
    world.namespace["data"] = [[0], [1]]
    world.run(RANK + "v = (data[r], 'r%d' % r)")
    for other in (pickle.loads(pickle.dumps(world.namespace["v"])), copy.deepcopy(world.namespace["v"])):
        assert [*other] == [([0], "r0"), ([1], "r1")]


def test_the_notebook_changes_a_value(world):
    world.run(RANK + "x = [r]")
    world.namespace["x"][1].append("n")
    world.run("y = list(x)")
    assert [*world.namespace["y"]] == [[0], [1, "n"]]
    world.namespace["x"][0].append("m")
    world.run("y = list(x)")
    assert [*world.namespace["y"]] == [[0, "m"], [1, "n"]]


def test_another_size(world, three_ranks):
    world.run(RANK + "x = r")
    three_ranks.fresh()["x"] = world.namespace["x"]
    with pytest.raises(CannotTravel, match=r"x holds one value for each of 2 ranks, and this world has 3.*x = x\[0\]"):
        three_ranks.run("y = x")


def test_some_ranks_of_three(world3):
    world3.namespace["data"] = [[0]]
    world3.run(RANK + "x = r; data.append('s')", on=[0, 2])
    assert list(world3.namespace["x"]) == [0, 2] and world3.namespace["data"] == [[0], "s"]
    world3.run("n = len(data)")
    assert world3.namespace["n"] == 2
    world3.run("data.append(1)", on=[1])
    world3.run("n = len(data)")
    assert world3.namespace["n"] == 3


def test_a_result_that_differs(world):
    world.run(RANK + "_ = r", result=True)
    assert list(world.merged.result) == [0, 1] and "_" not in world.namespace


def test_tensors_of_ranks(world):
    world.do("import torch")
    world.run(RANK + "t = torch.full((2, 3), float(r)); s = t.mean()")
    t, s = world.namespace["t"], world.namespace["s"]
    assert t.cat().shape == (4, 3) and t.mean()[0, 0] == 0.5 and s.cat().tolist() == [0, 1]
    assert "Tensor[2, 3]" not in repr(t) and os.getpid()


def test_sets_and_strings_are_compared_by_content(world):
    world.run(
        RANK + "a, b = 'spam', ('spam' if r else ''.join(['sp', 'am'])); pair = [a, b]\n"
        "s = set('abcdef') if r else set('fedcba') | {'z'} - {'z'}"
    )
    assert world.namespace["pair"] == ["spam", "spam"] and world.namespace["s"] == set("abcdef")


def test_tensors_that_numpy_has_seen(world):
    world.run(RANK + "import torch; t = torch.ones(3) * r; a = t.numpy()")
    world.run("t += 1; same = a.sum() == t.sum() and a.base is not None")
    assert world.namespace["same"] is True
    assert [t.tolist() for t in world.namespace["t"]] == [[1.0] * 3, [2.0] * 3]


def test_memory_that_a_tensor_does_not_show(world):
    """As mse_loss leaves it: one number at the beginning of a memory of many."""
    world.run(RANK + "import torch; whole = torch.full((10,), float(r)); whole[0] = 7.0")
    world.run("s = torch.tensor(0.0).set_(whole.untyped_storage(), 0, (), ())")
    assert world.namespace["s"].item() == 7.0
    world.run("s = s * 2")
    assert world.namespace["s"].item() == 14.0
