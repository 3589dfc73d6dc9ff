"""About ninety kinds of object: there, changed on the ranks, and back in place; equal to the same change in one process."""

# ruff: noqa: E501

import warnings

import pytest

from nbpar.errors import CannotTravel
from nbpar.values import RankRef

SETUP = r"""
import torch, numpy as np, collections, dataclasses, enum, threading, logging, random, tempfile, weakref, functools, io, array
import queue, itertools, re, decimal, pathlib, contextlib, datetime, fractions, uuid, abc, typing
import pandas as pd, PIL.Image
@dataclasses.dataclass
class DC: a: int; b: list
@dataclasses.dataclass(frozen=True, slots=True)
class FS: a: int
@dataclasses.dataclass(slots=True)
class SL: a: int
class E(enum.Enum): A = 1; B = 2
NT = collections.namedtuple('NT', 'a b')
class TN(typing.NamedTuple): a: int; b: list
class SubT(torch.Tensor): pass
class SubL(list): pass
class SubD(dict): pass
class SubS(set): pass
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def __init__(self, a): self.a = a
    def area(self): return self.a ** 2
    @property
    def half(self): return self.a / 2
    @classmethod
    def unit(cls): return cls(1)
    @staticmethod
    def sides(): return 4
class Getst:
    def __init__(self): self.a = 1; self.cache = threading.Lock(); self.inner = [1]
    def __getstate__(self): return {'a': self.a, 'inner': self.inner}
    def __setstate__(self, s): self.__dict__.update(s); self.cache = threading.Lock()
class Red:
    def __init__(self, a): self.a = a
    def __reduce__(self): return Red, (self.a,)
class Lazy:
    def __init__(self): self.loaded = {}
    def __getattr__(self, k):
        if k.startswith('__'): raise AttributeError(k)
        if 'loaded' not in self.__dict__: raise RecursionError('getattr before init')
        return self.loaded.setdefault(k, len(self.loaded))
class Single:
    _inst = None; count = 0
    def __new__(cls):
        if cls._inst is None: cls._inst = object.__new__(cls)
        return cls._inst
class Slots:
    __slots__ = ('a', '__b')
    def __init__(self): self.a = 1; self.__b = [2]
    def b(self): return self.__b
class Hooked(torch.nn.Module):
    def __init__(self): super().__init__(); self.l = torch.nn.Linear(2, 2); self.seen = []; self.h = self.l.register_forward_hook(lambda m, i, o: self.seen.append(1))
    def forward(self, x): return self.l(x)
class Meta(type):
    def __call__(cls, *a): o = super().__call__(*a); o.made = True; return o
class Made(metaclass=Meta): pass
class Guarded:
    def __init__(self): self.__dict__['a'] = [1]
    def __setattr__(self, k, v): raise AttributeError('read only')
class Eq:
    def __init__(self): self.a = 1
    def __eq__(self, o): raise RuntimeError('not comparable')
    __hash__ = object.__hash__
def mkpair():
    n = 0
    def inc():
        nonlocal n; n += 1
    def get(): return n
    return inc, get
def mkfact():
    def fact(k): return 1 if k == 0 else k * fact(k - 1)
    return fact
def counter():
    n = 0
    def f():
        nonlocal n; n += 1; return n
    return f
def decorated(f):
    @functools.wraps(f)
    def g(*a): g.calls += 1; return f(*a)
    g.calls = 0
    return g
torch.manual_seed(0)
base = torch.arange(20.); npv0 = np.arange(10.); leaf0 = torch.ones(3, requires_grad=True); dc0 = DC(1, [2])
param0 = torch.nn.Parameter(torch.ones(3))
def T(t): return (str(t.layout), str(t.dtype), tuple(t.shape), t.requires_grad, (t.dequantize() if t.is_quantized else t.detach()).to_dense().flatten().tolist(), None if not t.is_leaf or t.grad is None else t.grad.tolist(), type(t).__name__)
def V(o): return {k: v for k, v in vars(o).items() if k != 'cache'}
"""

SETUP_CODE = compile(SETUP, "<setup>", "exec")

# name | how it is made | what the ranks do to it | what is compared | what may not keep its identity or cannot travel
CASES = """
view | base[10:] | o += 1 | T(o), T(base)
expanded | torch.ones(1, 3).expand(4, 3) | pass | T(o), o.stride()
overlap | base.as_strided((3, 4), (2, 1)) | o[0, 2] = -1 | T(o), T(base)
noncontig | torch.arange(6.).reshape(2, 3).t() | o[0, 0] = 9 | T(o), o.stride()
sparse | torch.eye(3).to_sparse() | o = o * 2 | T(o) | new
sparse_in_place | torch.eye(3).to_sparse() | o.mul_(2) | T(o) | new
csr | torch.eye(3).to_sparse_csr() | pass | T(o)
quantized | torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8) | pass | T(o)
bf16 | torch.ones(3, dtype=torch.bfloat16) | o.add_(1) | T(o)
complex | torch.ones(3, dtype=torch.complex64) | o.mul_(2j) | T(o)
conj | torch.ones(3, dtype=torch.complex64).mul(1j).conj() | pass | T(o), o.is_conj()
zero | torch.empty(0, 3) | pass | T(o)
scalar | torch.tensor(3.5) | o += 1 | T(o)
boolean | torch.tensor([True, False]) | o[1] = True | T(o)
leaf | leaf0 | (o * 2).sum().backward() | T(o)
parameter | param0 | o.data = torch.zeros(5) | T(o)
buffer | torch.nn.Buffer(torch.ones(3)) | o.add_(1) | T(o), isinstance(o, torch.nn.Buffer)
subclass | torch.ones(3).as_subclass(SubT) | o.add_(1) | T(o)
attribute | torch.ones(3) | o.note = [1] | T(o), getattr(o, 'note', 0)
meta | torch.ones(3, device='meta') | pass | o.shape, str(o.device)
resized | torch.ones(3) | o.resize_(5).fill_(2) | T(o)
frozen_now | torch.ones(3, requires_grad=True) | o.requires_grad_(False) | T(o)
typed | base.untyped_storage() | o[0] = 7 | bytes(o)
array | np.arange(6.).reshape(2, 3) | o[0] = 7 | o.tolist()
array_view | npv0[3:] | o += 1 | o.tolist(), npv0.tolist()
array_stride | npv0[::-2] | o[0] = 99 | o.tolist(), npv0.tolist()
array_fortran | np.asfortranarray(np.ones((3, 2))) | o[0, 1] = 7 | o.tolist(), o.flags.f_contiguous
array_axes | np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2).copy(order='K') | o[0, 1, 2] = 99 | o.tolist(), o.strides
array_objects | np.array([1, 'a', [2]], dtype=object) | o[2].append(5); o[0] = (7,) | o.tolist()
array_record | np.zeros(2, dtype=[('a', 'i4'), ('b', 'f8')]) | o['a'] = 3 | o.tolist()
array_masked | np.ma.array([1, 2], mask=[0, 1]) | o[0] = 9 | str(o)
array_reshaped | np.arange(6) | o.shape = (2, 3) | o.tolist()
array_retyped | np.arange(6) | o.dtype = np.int32 | o.tolist() | new
array_bytes | np.frombuffer(b'abcd', np.uint8) | pass | o.tolist(), o.flags.writeable
array_time | np.array(['2020-01-01'], 'M8[D]') | o[0] = '2021-01-01' | str(o)
array_text | np.array(['ab', 'c']) | o[0] = 'zz' | o.tolist()
array_zero | np.zeros((0, 3)) | pass | o.shape
array_scalar | np.float32(3) | o = o + 1 | float(o), type(o).__name__ | new
from_numpy | torch.from_numpy(npv0) | o += 10 | T(o)
to_numpy | base.numpy() | o[0] = 5 | o.tolist(), T(base)
frame | pd.DataFrame({'a': [1, 2]}) | o['b'] = o.a * 2 | o.to_dict()
series | pd.Series([1, 2]) | o.iloc[0] = 99 | o.to_dict()
index | pd.Index([1, 2]) | pass | list(o)
image | PIL.Image.new('L', (2, 2)) | o.putpixel((0, 0), 7) | o.tobytes()
lock | threading.Lock() | pass | o.locked()
rlock | threading.RLock() | pass | type(o).__name__
event | threading.Event() | pass | o.is_set()
module | functools | pass | o.__name__
logger | logging.getLogger('x.y') | o.setLevel(10) | o.name
random | random.Random(1) | o.random() | o.getstate()
np_generator | np.random.default_rng(1) | o.random() | o.bit_generator.state
np_state | np.random.RandomState(1) | o.rand() | str(o.get_state(legacy=False))
generator | torch.Generator().manual_seed(1) | torch.rand(2, generator=o) | o.get_state().tolist()
dataclass | DC(1, [2]) | o.b.append(3); o.a = 5 | o
dataclass_frozen | FS(1) | pass | o, hasattr(o, '__dict__')
dataclass_slots | SL(1) | o.a = 4 | o, hasattr(o, '__dict__')
slots | Slots() | o.a = 4; o.b().append(3) | o.a, o.b()
enum | E.A | pass | o is E.A, E(2).name
named | NT(1, [2]) | o.b.append(3) | o, type(o) is NT
typed_named | TN(1, [2]) | o.b.append(3) | o, type(o) is TN
huge | 10 ** 5000 | pass | o % 10 ** 9
cycle | (lambda l: (l.append(l), l)[1])([]) | o.append(1) | o[0] is o, len(o)
cycle_tuple | (lambda l: (l.append((l,)), l[0])[1])([]) | o[0].append(1) | o[0][0] is o, len(o[0])
list_subclass | SubL([1]) | o.append(2); o.tag = 1 | list(o), o.tag
dict_subclass | SubD(a=1) | o['b'] = 2; o.tag = 1 | dict(o), o.tag
set_subclass | SubS([1]) | o.add(2); o.tag = 1 | set(o), o.tag
getstate | Getst() | o.a = 9; o.inner.append(2) | V(o)
reduce | Red([1]) | o.a.append(8) | V(o)
reduce_new | Red(1) | o.a = 8 | V(o)
lazy | Lazy() | o.foo | V(o)
single | Single() | o.x = 1; Single.count = 7 | V(o), Single.count
hooked | Hooked() | o(torch.ones(1, 2)) | o.seen
metaclass | Made() | o.x = 1 | V(o)
abstract | Square(2) | o.a = 3 | o.area(), o.half, o.unit().a, o.sides(), isinstance(o, Shape)
guarded | Guarded() | o.a.append(2); vars(o)['b'] = 3 | V(o)
uncomparable | Eq() | o.a = 2 | V(o)
uncomparable_list | [Eq()] | o.append(1) | len(o), V(o[0])
weakref | weakref.ref(dc0) | o().a = 5 | o() is dc0, dc0
defaultdict | collections.defaultdict(list) | o['a'].append(1) | o, o.default_factory
ordered | collections.OrderedDict(a=1, b=2) | o.move_to_end('a'); o['c'] = 3 | list(o.items())
ordered_gone | collections.OrderedDict(a=1, b=2) | del o['a'] | list(o.items())
counter | collections.Counter('aab') | o.update('b') | o
deque | collections.deque([1], maxlen=3) | o.append(2) | o, o.maxlen
deque_left | collections.deque([1, 2]) | o.appendleft([0]) | o
array_array | array.array('i', [1]) | o.append(2) | o
bytearray | bytearray(b'ab') | o.extend(b'c') | o
list | [1, [2]] | o[1].append(3); o.insert(0, 'x'); o.pop() | o
dict | {'a': 1, 'b': [2]} | o['b'].append(3); del o['a']; o['c'] = o | o['b'], list(o), o['c'] is o
dict_order | {'a': 1, 'b': 2} | o['a'] = o.pop('a') | list(o.items())
set | {1, 2} | o.add(3); o.discard(1) | o
frozenset | frozenset([1]) | pass | o
tuple | ([1], 'a') | o[0].append(2) | o
text | 'a' * 1000 | o += 'b' | o | new
stringio | io.StringIO('a') | o.write('zz') | o.getvalue(), o.tell()
bytesio | io.BytesIO(b'a') | o.write(b'zz') | o.getvalue()
closure | counter() | o(); o() | [c.cell_contents for c in o.__closure__]
closures | mkpair() | o[0](); o[0]() | o[1]()
recursive | mkfact() | o(3) | o(5)
decorated | decorated(len) | o('ab') | o('abc'), o.calls
defaults | (lambda x=[1]: x) | o().append(2) | o()
partial | functools.partial(DC, 1, b=[2]) | o.keywords['b'].append(3) | o()
method | dc0.b.append | o(4) | dc0
bound | Square(3).area | o.__self__.a = 4 | o()
pattern | re.compile('a') | pass | o.pattern
decimal | decimal.Decimal('1.5') | pass | o
path | pathlib.Path('/x') | pass | o
moment | datetime.datetime(2020, 1, 1) | o += datetime.timedelta(1) | o | new
uuid | uuid.UUID(int=5) | pass | o
exception | ValueError('x', [1]) | o.args[1].append(2) | o.args
class | DC | o.extra = 5 | o.extra, o(1, []).a
class_method | Square | o.area = lambda self: -1 | o(2).area()
builtin | len | pass | o([1])
ufunc | np.add | pass | o(1, 2)
dtype | torch.float16 | pass | o
device | torch.device('cpu') | pass | o
size | torch.Size([2]) | pass | o, type(o)
range | range(3) | pass | list(o)
list_iterator | iter([1, 2, 3]) | next(o) | list(o)
iterators | zip([1, 2, 3], iter('abc')) | next(o) | list(o)
state_dict | torch.nn.Linear(2, 2).state_dict() | o['weight'].zero_() | {k: v.tolist() for k, v in o.items()}
loss | torch.nn.CrossEntropyLoss() | pass | o.reduction
scaler | torch.amp.GradScaler('cpu') | o._init_scale = 3.0 | o._init_scale
lbfgs | torch.optim.LBFGS([param0], 1) | o.param_groups[0]['lr'] = 3 | o.param_groups[0]['lr'], o.param_groups[0]['params'][0] is param0
lstm | torch.nn.LSTM(2, 2) | o.weight_ih_l0.data.add_(1) | o.weight_ih_l0.tolist(), o._flat_weights[0] is o.weight_ih_l0
sequential | torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.3)) | o[1].p = 0.1; o.eval() | o[1].p, o.training
weight_norm | torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2)) | o.weight.sum().backward() | [p.grad.tolist() if p.grad is not None else 0 for p in o.parameters()]
subset | torch.utils.data.Subset(torch.utils.data.TensorDataset(base), [1, 2]) | o.indices.append(3) | len(o), o[2][0].item()
"""

STAY = """
generator | (i for i in range(3)) | next(o) | 1
file | tempfile.TemporaryFile() | o.write(b'x') | write
open_file | open('/dev/null', 'w') | o.write('x') | write
weak_keys | weakref.WeakKeyDictionary({DC: 1}) | o.clear() | clear
memory | memoryview(bytearray(b"ab")) | o.release() | release
cached | functools.lru_cache(len) | o('ab') | cache_info
"""


def cases(text):
    rows = [[part.strip() for part in line.split(" | ")] for line in text.strip().split("\n")]
    return [pytest.param(*row[1:], *[""] * (5 - len(row)), id=row[0]) for row in rows]


def look(seen, namespace):
    """None where there is nothing to see before the change."""
    if "next" in seen or seen == "list(o)":  # it would use the iterator up
        return None
    try:
        return eval(f"({seen},)", namespace)
    except (AttributeError, KeyError, IndexError):
        return None


@pytest.fixture(scope="module")
def notebook(two_ranks):
    """One notebook for all cases, so that the table grows as in a long session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two_ranks.fresh()
        two_ranks.do(SETUP)
        yield two_ranks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, change, seen, identity", cases(CASES))
def test_there_and_back(notebook, make, change, seen, identity):
    ns, one = notebook.namespace, {"__name__": "__main__"}
    exec(SETUP_CODE, one)
    exec(f"o = {make}", one)
    begin = look(seen, one) if identity != "new" else None
    exec(change, one)
    expected = eval(f"({seen},)", one)
    # the notebook's own, made afresh for each case
    exec("torch.manual_seed(0); base = torch.arange(20.); npv0 = np.arange(10.); dc0 = DC(1, [2])", ns)
    exec("leaf0 = torch.ones(3, requires_grad=True); param0 = torch.nn.Parameter(torch.ones(3)); Single.count = 0", ns)
    exec(f"o = {make}", ns)
    before = ns["o"]
    code = f"arrived = ({seen},)\n{change}" if begin is not None else change
    merged = notebook.run(code, reads="o base npv0 dc0 leaf0 param0 DC T V E torch np Single Square Shape NT TN Red datetime")
    assert merged.notes == [] and notebook.packed.notes == []
    if begin is not None:
        assert repr(ns["arrived"]) == repr(begin)
    assert repr(eval(f"({seen},)", ns)) == repr(expected)
    assert identity == "new" or ns["o"] is before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, change, use, _", cases(STAY))
def test_what_cannot_travel_stays_where_it_is(notebook, make, change, use, _):
    ns = notebook.namespace
    exec(f"o = {make}", ns)
    mine = ns["o"]
    notebook.run("try: o.anything\nexcept Exception as error: why = repr(error)\nback = o", reads="o")
    assert ns["o"] is mine and ns["back"] is mine and "CannotTravel" in ns["why"] and "own process" in ns["why"]
    assert any(note.startswith("o (") for note in notebook.packed.notes)
    notebook.run(f"theirs = {make}", reads="DC dc0 tempfile weakref functools")
    ref = ns["theirs"]
    assert isinstance(ref, RankRef) and "on the ranks" in repr(ref)
    with pytest.raises(CannotTravel, match="on the ranks"):
        ref.anything()
    notebook.run(
        change.replace("o.", "theirs.").replace("o(", "theirs(").replace("(o)", "(theirs)") + "\nsame = theirs", reads="theirs"
    )
    assert ns["theirs"] is ref and ns["same"] is ref
    notebook.end.forget()
    notebook.run("kind = type(theirs).__name__", reads="theirs")
    assert ns["kind"] == type(mine).__name__
