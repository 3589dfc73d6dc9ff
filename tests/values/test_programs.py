"""Random programs over a few variables, their cells in turn in the notebook and on two ranks: always what one process has."""

import random

import numpy as np
import pytest
import torch

SETUP = """
import torch, numpy as np
class C:
    def __init__(self): self.v = []; self.w = None
class N(torch.nn.Module):
    def __init__(self): super().__init__(); self.p = torch.nn.Parameter(torch.ones(2), False); self.x = None
def make(z):
    n = [z]
    def f(): n.append(len(n)); return n
    return f
"""

NAMES = "abcdefgh"

# T: any name; A, B: names that exist, if there are any; I: a small number. What fails is passed over, alike everywhere.
STATEMENTS = """
T = [A, B]; T = {'k': A}; T = (A, [B]); T = C(); T = make(A); T = A; T = I; T = torch.arange(6.) + I; T = np.arange(6) + I; T = N()
T = A[2:]; T = A[0]; T = A.v; T = A.p; T = list(A); T = set([I]); T = A.view(2, 3); T = A.reshape(3, 2); T = A.clone()
T = A.numpy(); T = torch.from_numpy(A); T = A.copy(); del A; del A['k']; del A.w
A.append(B); A.append(I); A.insert(0, B); A.reverse(); A.clear(); A.add(I); A['k'] = B; A['z'] = I; A[1] = B; A[1] += 5
A.v.append(B); A.v = B; A.w = B; A.x = B; A.p = torch.nn.Parameter(torch.zeros(3), False); A.p.data.add_(1); A.add_(1); A.zero_()
A.t_(); A.shape = (3, 2); A()
""".replace("\n", "; ")


def cell(choose, names):
    lines = []
    for _ in range(choose.randrange(1, 7)):
        line = choose.choice([s.strip() for s in STATEMENTS.split(";") if s.strip()])
        for hole, word in (("A", choose.choice(names)), ("B", choose.choice(names)), ("I", str(choose.randrange(9)))):
            line = " ".join(part.replace(hole, word) if part not in ("None",) else part for part in line.split(" "))
        if line.startswith("T "):
            line = choose.choice(NAMES) + line[1:]
        lines.append(f"try:\n    {line}\nexcept Exception: pass\n")
    return "".join(lines)


def seen(o, known):
    """What an object is and holds, with the same object and the same memory written as such."""
    if isinstance(o, torch.Tensor):
        memory = known.setdefault(("memory", o.untyped_storage().data_ptr()), len(known)) if o.numel() else 0
        return "tensor", known.setdefault(id(o), len(known)), o.tolist(), tuple(o.shape), o.stride(), o.storage_offset(), memory
    if isinstance(o, np.ndarray):
        return "array", known.setdefault(id(o), len(known)), o.tolist(), o.shape
    if isinstance(o, int | float | np.generic | type(None) | str):
        return repr(o)
    if id(o) in known:
        return known[id(o)]
    known[id(o)] = len(known)
    if isinstance(o, list | tuple):
        return type(o).__name__, [seen(x, known) for x in o]
    if isinstance(o, dict):
        return "dict", [(key, seen(value, known)) for key, value in o.items()]
    if isinstance(o, set):
        return "set", sorted(o)
    if callable(o) and hasattr(o, "__code__"):
        return "function", [seen(cell.cell_contents, known) for cell in o.__closure__ or ()]
    return type(o).__name__, [(key, seen(value, known)) for key, value in vars(o).items()]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.filterwarnings("ignore")
def test_a_random_program(world, seed):
    choose = random.Random(seed)
    one = {"__name__": "__main__"}
    exec(SETUP, one)
    world.do(SETUP)
    program = []
    for _ in range(12):
        source = cell(choose, [name for name in NAMES if name in one] or ["a"])
        exec(source, one)
        program.append(source.replace("try:\n    ", "").replace("\nexcept Exception: pass", ""))
        if choose.random() < 0.4:
            world.do(source)
        else:
            if choose.random() < 0.1:
                world.end.forget()
            world.run(source)
            assert (world.packed.notes, world.merged.notes) == ([], [])
        expected, found = {}, {}
        for name in NAMES:
            assert (name in one) == (name in world.namespace), "\n".join(program)
            if name in one:
                assert seen(world.namespace[name], found) == seen(one[name], expected), "\n".join([name, *program])
