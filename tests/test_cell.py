"""What a cell reads and binds."""

import pytest

from nbpar.cell import names

CASES = [
    ("y = x", "x", "y"),
    ("x += 1", "x", "x"),
    ("[a * k for a in xs]", "xs k", ""),
    ("def f(u=d): return g(u) + z", "d g z", "f"),
    (
        "@deco(q)\nclass C(Base, metaclass=M):\n  t: int = v\n  w = w\n  def m(self): return super().m() + gg",
        "deco q Base M v w gg",
        "C",
    ),
    ("del x", "x", ""),
    ("def f():\n  global n\n  n += 1\nf()", "n f", "f n"),
    ("if (m := h(1)): pass", "h", "m"),
    ("import a.b as c, d.e", "", "c d"),
    ("print(f'{x!r:>{w}} {y=}')", "x w y", ""),
    ("exec('z = q + 1')", "q", "z"),
    ("exec(code)", "code", ""),
    ("%time r = f(x)", "f x", "r"),
    ("!echo $p {q[0]} $$HOME", "p q", ""),
    ("fs = !ls {d}", "d", "fs"),
    ("%%time\ns = x + 1", "x", "s"),
    ("r = await co(x)", "co x", "r"),
    ("async for i in ag(n): k(i)", "ag n k", "i"),
    ("for i, (j, *k) in z: pass", "z", "i j k"),
    ("with o(p) as (a, b): a.c = d", "o p d", "a b"),
    ("try: t()\nexcept E as e: print(e)", "t E", "e"),
    ("x[i] = y", "x i y", ""),
    ("x.a = y", "x y", ""),
    ("match s:\n  case P(u=v): pass", "s P", "v"),
    ("def f(): return [x for x in (lambda: y)()]", "y", "f"),
    ("def f():\n  def g():\n    nonlocal u\n    u = top\n  u = 1", "top", "f"),
    ("x: 'T' = 1", "", "x"),
    ("print = 3; print", "print", "print"),
    ("sum(xs)", "sum xs", ""),
    ("?f", "", ""),
    ("%matplotlib inline", "", ""),
]


@pytest.mark.parametrize("source, reads, binds", CASES, ids=[case[0][:20] for case in CASES])
def test_what_is_needed_is_found(source, reads, binds):
    found = names(source)
    assert found.reads >= set(reads.split())
    assert found.binds >= set(binds.split())


@pytest.mark.parametrize(
    "source, absent", [("y = x", "y"), ("[a for a in xs]", "a"), ("def f(u): v = u; return v", "u v"), ("x: int = 1", "x")]
)
def test_local_and_assigned_names_are_not_reads(source, absent):
    assert not names(source).reads & set(absent.split())


@pytest.mark.parametrize("source", ["exec(code)", "globals()['x']", "from m import *", "eval(text)", "%run script.py"])
def test_open_ended_cells_say_so(source):
    assert names(source).dynamic


def test_closed_cells_are_not_open_ended():
    assert not names("for x, y in loader:\n    loss = f(x)\n    loss.backward()").dynamic


def test_a_cell_that_does_not_parse_raises():
    with pytest.raises(SyntaxError):
        names("def f(:")


@pytest.mark.parametrize(
    "source, anew",
    [
        ("for x, y in data:\n  loss = f(x)\n  loss.backward()", "x y loss"),
        ("loss.backward()\nloss = 1", ""),
        ("loss = loss + 1", ""),
        ("total += 1", ""),
        ("if (m := f()): m", "m"),
        ("a: int = b\nb = a", "a"),
    ],
)
def test_names_that_begin_anew(source, anew):
    assert names(source).anew == set(anew.split())
