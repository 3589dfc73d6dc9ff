"""Names: what a cell finds on the ranks, and what it leaves in the notebook."""

# ruff: noqa: E501

import dataclasses
import pickle

import pytest

from nbpar.errors import CannotTravel
from nbpar.values import RankRef
from nbpar.values.staying import Stay
from tests.values.world import CellFailed


def test_a_name_that_the_cell_does_not_read_is_not_there(world):
    world.namespace.update(x=1, y=2)
    world.run("z = x")
    with pytest.raises(CellFailed, match="NameError: name 'y' is not defined"):
        world.run("exec('w = y')", reads="")
    assert "w" not in world.namespace


def test_no_old_data(world):
    world.namespace["x"] = [1]
    world.run("y = x")
    del world.namespace["x"], world.namespace["y"]
    with pytest.raises(CellFailed, match="NameError: name 'x'"):
        world.run("z = x")
    world.namespace["x"] = "new"
    world.run("z = x")
    assert world.namespace["z"] == "new"


def test_deleting(world):
    world.namespace.update(x=[1], y=[2], z=3)
    world.run("del x\ny.append(5)\nalias = y\ndel y, z")
    assert "x" not in world.namespace and "y" not in world.namespace and "z" not in world.namespace
    assert world.namespace["alias"] == [2, 5]


def test_changed_and_then_deleted(world):
    x = world.namespace["x"] = [1]
    world.run("x.append(2); del x")
    assert x == [1, 2] and "x" not in world.namespace


def test_changed_and_then_detached(world):
    inner = [1]
    world.namespace["outer"] = [inner]
    world.run("outer[0].append(2); outer.clear()")
    assert inner == [1, 2] and world.namespace["outer"] == []


def test_identity_and_sharing(world):
    a = world.namespace["a"] = [1]
    b = world.namespace["b"] = {"a": a}
    world.run("same = b['a'] is a; a.append(2); c = [a, b]")
    assert world.namespace["same"] is True and world.namespace["a"] is a and a == [1, 2]
    assert world.namespace["c"][0] is a and world.namespace["c"][1] is b and b["a"] is a


def test_a_shadowed_builtin(world):
    world.namespace["sum"] = 5
    world.run("y = sum + 1; max = 7; exit = 8")
    assert world.namespace["y"] == 6 and world.namespace["max"] == 7 and world.namespace["exit"] == 8
    world.run("z = max + exit")
    assert world.namespace["z"] == 15
    del world.namespace["sum"]
    world.run("w = sum([1, 2])")
    assert world.namespace["w"] == 3


def test_names_reached_through_functions_and_classes(world):
    world.do(
        "SCALE = 2\nlog = []\ndef helper(x): log.append(x); return x * SCALE\ndef outer(x): return [helper(v) for v in [x]][0]\n"
        "class Net:\n    def __call__(self, x): return outer(x)\nnet = Net()\nfunctions = {'f': lambda x: net(x)}"
    )
    log = world.namespace["log"]
    world.run("y = functions['f'](3)")
    assert world.namespace["y"] == 6 and log == [3] and world.namespace["log"] is log
    world.namespace["SCALE"] = 5
    world.do("def helper(x): log.append('new'); return x * SCALE")
    world.run("y = functions['f'](3); SCALE = 7")
    assert world.namespace["y"] == 15 and log == [3, "new"] and world.namespace["SCALE"] == 7
    assert world.namespace["outer"](1) == 7


def test_functions_of_the_cell(world):
    world.namespace["k"] = 3
    world.run("def f(x): return x + k\ndef g(x): return f(x) * 2\nh = lambda: g")
    ns = world.namespace
    assert ns["g"](1) == 8 and ns["h"]() is ns["g"] and ns["f"].__globals__ is ns
    ns["k"] = 0
    assert ns["g"](1) == 2
    world.run("y = g(5)")
    assert ns["y"] == 10
    world.run("def f(x): return -1\ny = g(5)")
    assert ns["y"] == -2 and ns["g"](0) == -2


def test_classes_of_the_cell(world):
    world.run(
        "import dataclasses, enum\n@dataclasses.dataclass\nclass P:\n    x: int = 1\n    def double(self): return self.x * 2\n"
        "class Q(P): pass\nclass Colour(enum.Enum): RED = 1\np = Q(4)\ndef make():\n    class Local: pass\n    return Local()\n"
        "locals_ = [make(), make()]; red = Colour.RED"
    )
    ns = world.namespace
    assert isinstance(ns["p"], ns["P"]) and ns["p"].double() == 8 and dataclasses.is_dataclass(ns["P"])
    assert ns["red"] is ns["Colour"].RED and type(ns["locals_"][0]) is not type(ns["locals_"][1])
    world.run("ok = isinstance(p, Q) and isinstance(p, P) and red is Colour.RED; P.extra = 5; p.x = 6")
    assert ns["ok"] is True and ns["P"].extra == 5 and ns["p"].double() == 12
    world.end.forget()
    world.run("ok = isinstance(p, Q) and isinstance(p, P) and red is Colour.RED; r = Q(1)")
    assert ns["ok"] is True and isinstance(ns["r"], ns["P"])


def test_imports_of_the_cell(world):
    world.run("import json.decoder as jd\nfrom math import *\nfrom collections import OrderedDict as OD")
    assert world.namespace["jd"].__name__ == "json.decoder" and world.namespace["pi"] > 3 and world.namespace["OD"]


def test_everything_for_open_ended_cells(world):
    world.namespace.update(a=1, b=[2], code="c = a + b[0]")
    world.run("exec(code); globals()['d'] = 4", everything=True)
    assert world.namespace["c"] == 3 and world.namespace["d"] == 4


def test_ipythons_own_names_stay(world):
    world.namespace.update(In=["", "x"], Out={1: 2}, _=5, __=6, _i3="x", _3=7, _private=8, __version__="1")
    world.run(
        "seen = sorted(n for n in globals() if n[0] == '_' and n[-1] != '_' or n in ('In', 'Out')); _hidden = 1", everything=True
    )
    assert world.namespace["seen"] == ["In", "Out", "_private"] or "_private" in world.namespace["seen"]
    assert world.namespace["In"] == ["", "x"] and world.namespace["_"] == 5 and world.namespace["_hidden"] == 1
    assert world.look(0, "namespace['In']") == [""] and world.namespace["__version__"] == "1"


def test_the_last_expressions_value(world):
    world.namespace["a"] = [1]
    world.run("a.append(2); _ = a", result=True)
    assert world.merged.result is world.namespace["a"] and "_" not in world.namespace
    world.run("_ = 3")
    assert world.merged.result is None


def test_out(world):
    x, y, hidden = world.namespace["x"], world.namespace["y"], world.namespace["hidden"] = [1], [2], [3]
    world.namespace.update(x=x, y=y, hidden=hidden)
    world.run("x.append(1); y.append(2); hidden.append(9); a = 5; b = 6; y = [0]; total = len(hidden)", out={"x", "a", "total"})
    ns = world.namespace
    assert x == [1, 1] and y == [2] and ns["y"] is y and hidden == [3] and ns["a"] == 5 and "b" not in ns and ns["total"] == 2
    world.run("n = (len(x), len(y), len(hidden))")
    assert ns["n"] == (2, 1, 1)
    world.run("del x, y", out={"y"})
    assert ns["x"] is x and "y" not in ns


def test_what_out_leaves_out_is_put_right_on_the_ranks(world):
    world.do("class C: pass\nc = C(); c.a = 1; d = {'a': 1}; l = [1]; s = {1}")
    world.run("c.b = 2; del c.a; d['b'] = 2; del d['a']; l.append(2); s.add(2); C.x = 5; n = 1", out={"n"})
    world.run("seen = (vars(c), d, l, s, hasattr(C, 'x'))")
    assert world.namespace["seen"] == ({"a": 1}, {"a": 1}, [1], {1}, False)


def test_out_leaves_tensors_as_they_are(world):
    world.do("import torch\nt = torch.zeros(3); u = torch.zeros(3)")
    world.run("t += 1; u += 1", out={"u"})
    assert world.namespace["t"].sum() == 0 and world.namespace["u"].sum() == 3
    world.run("s = (t.sum().item(), u.sum().item())")
    assert world.namespace["s"] == (0, 3)


def test_keep(world):
    world.do("import torch")
    world.run("big = torch.ones(1000); n = 1", keep={"big"})
    ref = world.namespace["big"]
    assert isinstance(ref, RankRef) and "--keep" in repr(ref) and "Tensor" in repr(ref) and world.namespace["n"] == 1
    assert any("big" in note for note in world.merged.notes)
    for use in (lambda: ref.sum, lambda: ref[0], lambda: ref(1), lambda: len(ref), lambda: ref + 1):
        with pytest.raises(CannotTravel, match="big"):
            use()
    world.run("big += 1; s = big.sum().item()")
    assert world.namespace["s"] == 2000 and world.namespace["big"] is ref
    world.end.forget()
    world.run("s = big.sum().item(); small = big[:2].clone()")
    assert world.namespace["s"] == 2000 and world.namespace["small"].tolist() == [2, 2]
    world.namespace["box"] = [ref]
    world.run("t = box[0].sum().item(); big = None")
    assert world.namespace["t"] == 2000 and world.namespace["big"] is None
    assert isinstance(pickle.loads(pickle.dumps(ref)), RankRef)


def test_released_refs_are_released_on_the_ranks(world):
    world.run("k = [1]", keep={"k"})
    before = world.look(0, "list(end.port.kept)")
    del world.namespace["k"]
    world.end.forget()
    world.run("pass")
    assert world.look(0, "list(end.port.kept)") == before[:-1] and ":k:" in before[-1]


def test_a_ref_of_ranks_that_ended(world, world3):
    world.run("k = [1]", keep={"k"})
    world3.namespace["k"] = world.namespace["k"]
    world3.run("try: k[0]\nexcept Exception as error: why = str(error)")
    assert "ranks that have ended" in world3.namespace["why"] and isinstance(world3.namespace["k"], RankRef)


def test_what_is_large_stays_unless_asked_for(world):
    world.do("import torch")
    world.run("import nbpar.values.rank_end as end\nend.LARGE = 1 << 20")
    try:
        world.run("big = torch.ones(1 << 20); small = 1")
        assert isinstance(world.namespace["big"], RankRef) and "4.0 MiB" in repr(world.namespace["big"])
        assert world.namespace["small"] == 1
        world.run("big2 = big * 2", out={"big2"})
        assert world.namespace["big2"].sum() == 2 << 20
    finally:
        world.run("import nbpar.values.rank_end as end\nend.LARGE = 1 << 30")


def test_unpicklable_values_do_not_stop_the_others(world):
    world.do("import threading, sys\nf = open('/dev/null', 'w'); g = (i for i in [1]); d = {'g': g, 'n': 1}; x = [1]")
    f, g = world.namespace["f"], world.namespace["g"]
    world.run("x.append(d['n']); d['n'] = 2; h = (i for i in x); pair = [h, 5]", reads="f g d x")
    assert world.namespace["x"] == [1, 1] and world.namespace["d"]["n"] == 2 and world.namespace["d"]["g"] is g
    assert world.namespace["f"] is f and world.namespace["pair"][1] == 5 and isinstance(world.namespace["h"], RankRef)
    assert world.namespace["pair"][0] is world.namespace["h"]
    world.run("v = next(pair[0])")
    assert world.namespace["v"] == 1


def test_what_cannot_be_rebuilt_on_the_ranks(world):
    world.do(
        "class Bad:\n    def __init__(self): self.a = 1\n    def __setstate__(self, s): raise ValueError('no luck')\n"
        "    def __getstate__(self): return {'a': 1}\nbad = Bad(); good = [1]; last = 'z'"
    )
    bad = world.namespace["bad"]
    world.run("good.append(2)\ntry: bad.a\nexcept Exception as error: why = str(error)\ntail = last", reads="bad good last")
    ns = world.namespace
    assert ns["bad"] is bad and ns["good"] == [1, 2] and "no luck" in ns["why"] and ns["tail"] == "z"
    assert any("bad" in note and "no luck" in note for note in world.merged.notes)
    world.run("good.append(3)", reads="bad good")
    assert ns["good"] == [1, 2, 3]


def test_what_cannot_be_rebuilt_in_the_notebook(world):
    world.run(
        "import os\nclass Home:\n    def __setstate__(self, s):\n        if 'RANK' not in os.environ: raise ValueError('not at home')\n"
        "    def __getstate__(self): return {'a': 1}\nhome = Home(); other = [1]"
    )
    assert world.namespace["other"] == [1] and isinstance(world.namespace["home"], RankRef)
    assert "not at home" in repr(world.namespace["home"])
    world.run("ok = isinstance(home, Home)")
    assert world.namespace["ok"] is True


def test_deep_recursion(world):
    world.do("deep = []\nfor _ in range(5000): deep = [deep]\nx = 1")
    deep = world.namespace["deep"]
    world.run("x = x + 1; here = [1]\nfor _ in range(5000): here = [here]", reads="deep x")
    assert world.namespace["deep"] is deep and world.namespace["x"] == 2 and isinstance(world.namespace["here"], RankRef)


def test_after_a_failed_cell_nothing_has_changed(world):
    x = world.namespace["x"] = [1]
    with pytest.raises(CellFailed):
        world.run("x.append(2); y = 1; 1 / 0")
    assert x == [1] and "y" not in world.namespace
    world.run("n = len(x)")
    assert world.namespace["n"] == 1


def test_a_missed_message_is_an_error(world):
    world.run("x = 1")
    world.end.pack(["x"], cell=99)
    with pytest.raises(CellFailed, match="missed a message"):
        world.run("y = x")
    world.run("y = x")
    assert world.namespace["y"] == 1


def test_agree(world):
    world.run("x = 1")
    assert not world.end.agree([[], []])


def test_three_ranks(world3):
    world3.namespace["x"] = {"a": [1]}
    world3.run("x['a'].append(2); y = x['a']")
    assert world3.namespace["x"] == {"a": [1, 2]} and world3.namespace["y"] is world3.namespace["x"]["a"]


def test_ten_thousand_objects(world):
    world.namespace["rows"] = rows = [{"i": i} for i in range(12_000)]
    world.run("rows[5]['i'] = -1; rows.append({'i': 'new'})")
    assert world.namespace["rows"] is rows and rows[5] == {"i": -1} and rows[-1] == {"i": "new"} and len(rows) == 12_001


def test_long_sessions_do_not_pile_up(world):
    world.namespace["keep"] = keep = [0]
    for i in range(150):
        world.run(f"keep[0] = [[{i}], [{i + 1}], {{}}, [[]], [[], []]]")
    assert world.namespace["keep"] is keep and keep[0][0] == [149]
    world.run("keep[0][0].append(1)")
    assert len(world.end.table) == world.look(0, "len(end.table)") < 600
    assert keep[0][0] == [149, 1]


def test_what_the_notebook_had_itself_stays_when_asked(world):
    world.do(
        "import torch\nmodel = torch.nn.Linear(2, 2); weight = model.weight; opt = torch.optim.SGD(model.parameters(), lr=1.0)"
    )
    world.do("box = {'model': model}; n = [1]")
    world.run(
        "model.weight.data.fill_(2.0); len(box), opt; n.append(2)",
        keep={"model": Stay("Why not.", 24), "opt": Stay("It holds model.")},
    )
    model, opt = world.namespace["model"], world.namespace["opt"]
    assert isinstance(model, RankRef) and isinstance(opt, RankRef) and world.namespace["n"] == [1, 2]
    assert "24 bytes" in repr(model) and "Why not." in repr(model)
    assert world.merged.notes[-1] == "weight: as before this cell, as what it belongs to stays on the ranks."
    assert world.namespace["box"]["model"] is model
    world.run(
        "opt.param_groups[0]['params'][0].data.add_(1); s = model.weight.sum().item(); same = opt.param_groups[0]['params'][0] is model.weight"
    )
    assert world.namespace["s"] == 12 and world.namespace["same"]
    world.end.forget()
    world.run("s = model.weight.sum().item(); n.append(3)")
    assert world.namespace["s"] == 12 and world.namespace["n"] == [1, 2, 3]


def test_memory_of_what_stayed_is_given_back_when_its_name_goes(world):
    world.run("import torch, weakref\nlarge = torch.ones(1000)", keep={"large"})
    world.run("import builtins\nbuiltins.look = weakref.ref(large)", reads="large weakref")
    del world.namespace["large"]
    world.run("import builtins, gc\ngc.collect(); gone = builtins.look() is None")
    world.run("import builtins, gc\ngc.collect(); gone = builtins.look() is None")
    assert world.namespace["gone"]
