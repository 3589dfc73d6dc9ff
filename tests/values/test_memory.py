"""Large data: shared memory, what is not sent again, and what happens where there is no room."""

import collections
import os
import resource

import numpy as np
import pytest
import torch

from nbpar.values import segment
from nbpar.values.pool import Arrived, Pool
from tests.values.world import World

MIB = 1 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_unchanged_data_is_not_sent_again(world):
    world.do("import torch, numpy as np\nt = torch.ones(1 << 20); a = np.ones(1 << 18)")
    ns = world.namespace
    world.run("s = t.sum().item() + a.sum()")
    assert world.packed.bytes > 6 * MIB and world.merged.bytes < 2000
    world.run("s = t.sum().item() + a.sum()")
    assert world.packed.bytes < 2000 and world.merged.bytes < 2000
    ns["t"].numpy()[5] = 7
    world.run("s = t.sum().item()")
    assert ns["s"] == (1 << 20) + 6 and world.packed.bytes > 4 * MIB
    world.run("a[3] = 5")
    assert ns["a"][3] == 5 and world.packed.bytes < 2000 and world.merged.bytes > 2 * MIB


def test_a_very_long_list_is_patched_and_its_items_keep_their_identity(world):
    world.do("rows = [[i] for i in range(20_000)]; one = rows[7_000]")
    ns = world.namespace
    world.run("n = len(rows)")
    assert world.packed.bytes > 50_000
    world.run("n = len(rows)")
    assert world.packed.bytes < 2000 and world.merged.bytes < 2000  # nothing changed: nothing is sent
    world.run("rows[7_000].append('on a rank'); rows.append(rows[7_000])")
    assert world.merged.bytes < 2000 and ns["one"] == [7_000, "on a rank"]
    assert ns["rows"][7_000] is ns["one"] is ns["rows"][-1]


@pytest.mark.parametrize(
    ("item", "change", "seen"),
    [
        ("[1, 2.5]", "rows[300][0] = True", [True, 2.5]),  # equal to what was there, and yet another object
        ("[1, i][: 1 + i % 2]", "rows[300].append(rows[301].pop())", [1, 301]),  # as many items in all
        ("dict(a=1, b=2)", "rows[300]['a'] = rows[300].pop('a')", {"b": 2, "a": 1}),
        ("dict(a=1, b=2)", "rows[300]['a'] = True", {"a": True, "b": 2}),
        ("collections.OrderedDict(a=1, b=2)", "rows[300].move_to_end('a')", collections.OrderedDict(b=2, a=1)),
        ("collections.deque([1, 2])", "rows[300].rotate()", collections.deque([2, 1])),
    ],
)
def test_a_change_in_one_of_many_is_seen(world, item, change, seen):
    world.do(f"import collections\nrows = [{item} for i in range(400)]")
    ns, rows = world.namespace, world.namespace["rows"]
    for _ in range(2):
        world.run("n = len(rows)")
    assert world.packed.bytes < 2000 and world.merged.bytes < 2000
    world.run(f"{change}; shown = repr(rows[300])")
    assert repr(rows[300]) == ns["shown"] == repr(seen)
    world.do(change.replace("300", "200").replace("301", "201"))
    world.run("shown = repr(rows[200])")
    assert ns["shown"] == repr(rows[200])


def test_changes_of_very_large_data_are_seen_on_both_sides(world):
    world.do("import torch, numpy as np\nt = torch.zeros(5 << 20); a = np.zeros(5 << 20, np.float32)")
    ns = world.namespace
    world.run("s = t.sum().item() + a.sum()")
    world.run("s = t.sum().item() + a.sum()")
    assert world.packed.bytes < 2000 and world.merged.bytes < 2000
    for step in range(1, 4):
        ns["t"][-step], ns["a"][step << 18] = 2, 3
        world.run("s = t.sum().item() + a.sum(); t[0] += 1; a[1] += 1")
        assert ns["s"] == 7 * step - 2 and ns["t"][0] == step == ns["a"][1]
    world.run("s = t.sum().item() + a.sum()")
    assert ns["s"] == 21 and world.packed.bytes < 2000 and world.merged.bytes < 2000


def test_the_kernel_holds_at_most_one_copy_more(world):
    big = world.namespace["big"] = torch.ones(64 * MIB // 4)
    before = resident()
    world.run("s = big[0].item(); big += 1")
    assert resident() - before < 80 * MIB and big.mean() == 2


def test_views_travel_with_their_memory(world):
    world.do("import numpy as np\na = np.arange(10.); v = a[3:]; w = v[::2]; f = np.asfortranarray(np.ones((2, 3))); col = f[:, 1]")
    ns = world.namespace
    world.run("v[0] = 30; w[1] = 50; col += 1; same = np.shares_memory(a, w)")
    assert ns["same"] and ns["a"].tolist() == [0, 1, 2, 30, 4, 50, 6, 7, 8, 9] and ns["f"][0].tolist() == [1, 2, 1]
    ns["a"][3] = -1
    world.run("x = v[0]; new = a[5:7]")
    assert ns["x"] == -1 and ns["new"].base is ns["a"]


def test_arrays_and_tensors_that_share_memory(world):
    world.do(
        "import numpy as np, torch\na = np.zeros(4); t = torch.from_numpy(a); n = t.numpy(); u = torch.zeros(4); m = u.numpy()"
    )
    ns = world.namespace
    world.run("t += 1; seen = a.tolist(); m[0] = 5; seen_u = u.tolist()", reads="t a m u n")
    assert ns["seen_u"] == [5, 0, 0, 0] and ns["u"].tolist() == [5, 0, 0, 0]
    assert ns["seen"] == [1, 1, 1, 1] and ns["a"].tolist() == [1, 1, 1, 1]
    world.run("a[1] = 9; seen = t.tolist()", reads="t a")
    assert ns["seen"] == [1, 9, 1, 1] and ns["t"].tolist() == [1, 9, 1, 1]


@pytest.fixture(params=["no memfd", "no /dev/shm", "no file"])
def little_room(request, monkeypatch):
    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment, "memfd", fail)
    if request.param != "no memfd":
        monkeypatch.setattr(segment, "in_dev_shm", fail)
    if request.param == "no file":
        monkeypatch.setattr(segment, "in_tmp", fail)


def test_falls_back_where_there_is_no_room(world, little_room):
    big = world.namespace["big"] = torch.arange(1 << 20)
    small = world.namespace["small"] = torch.arange(1 << 16)
    world.run("s = big.sum().item() + small.sum().item(); big += 1; small += 1")
    assert world.namespace["s"] == sum(range(1 << 20)) + sum(range(1 << 16)) and big[0] == 1 and small[-1] == 1 << 16


@pytest.fixture
def small_file_system(tmp_path, monkeypatch):
    """All segments go to a file system of 1 MiB."""
    folder = tmp_path / "shm"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {folder} 2>/dev/null"):
        libc = resource.RLIMIT_FSIZE
        old = resource.getrlimit(libc)
        resource.setrlimit(libc, (MIB, old[1]))
        restore = lambda: resource.setrlimit(libc, old)  # noqa: E731
    else:
        restore = lambda: os.system(f"umount {folder}")  # noqa: E731
    for make in ("memfd", "in_dev_shm", "in_tmp"):
        monkeypatch.setattr(segment, make, lambda: segment.nameless(str(folder)))
    yield folder
    restore()


def test_a_small_file_system_is_no_crash(small_file_system, world):
    own = Pool()
    large, small = memoryview(bytes(4 * MIB)), [memoryview(b"a" * 1000), memoryview(b"b" * 10)]
    assert [place.paths for place in own.write([large])] == [()]
    with Arrived(own.write(small), []) as chunks:
        assert chunks[0].whole() == b"a" * 1000 and chunks[1].whole() == b"b" * 10
    assert os.listdir(small_file_system) == []
    own.close()
    big = world.namespace["big"] = torch.ones(8 * MIB // 4)
    world.run("big *= 2")
    assert big.mean() == 2


def test_segments_are_nameless_private_and_reused():
    own = Pool()
    (first,) = own.write([memoryview(bytes(MIB))])
    assert os.readlink(*first.paths).startswith("/memfd:")
    (second,) = own.write([memoryview(bytes(MIB))])
    assert second.paths != first.paths  # the first may still be read
    own.release()
    assert own.write([memoryview(bytes(MIB // 2))])[0].paths in (first.paths, second.paths)
    own.close()
    assert not any(map(os.path.exists, first.paths + second.paths))
    assert Pool(shared=False).write([memoryview(bytes(MIB))])[0].paths == ()
    file = segment.in_dev_shm()
    assert os.fstat(file).st_mode & 0o077 == 0 and os.fstat(file).st_nlink == 0
    os.close(file)


def test_a_large_segment_is_several_files(monkeypatch):
    monkeypatch.setattr(segment, "STRIPES", 3)
    monkeypatch.setattr(segment, "STRIPED", MIB)
    own, maps = Pool(readers=[0]), {}
    buffers = [memoryview(np.random.default_rng(i).bytes(size)) for i, size in enumerate((5 * MIB + 7, 100, 4 * MIB, 2 * MIB + 1))]
    places = own.write(buffers, lendable=[2])
    assert [len(place.paths) for place in places] == [3] * 4 and places[0].paths == places[1].paths != places[2].paths
    with Arrived(places, [], maps) as chunks:
        assert [chunk.whole() for chunk in chunks] == buffers
        mapped = chunks[2].mapped()
    assert mapped == buffers[2] and list(maps.values()) == [mapped]
    mapped[2 * MIB] ^= 255  # copy-on-write
    with Arrived(places, []) as chunks:
        assert chunks[2].whole() == buffers[2] != mapped


def test_what_is_lent_comes_back_when_the_last_reader_is_done():
    own = Pool(readers=[0, 1])
    (place,) = own.write([memoryview(bytes(8 * MIB))], lendable=[0])
    own.release()
    own.returned(0, [place.lent])
    assert own.write([memoryview(bytes(8 * MIB))], lendable=[0])[0].paths != place.paths
    own.returned(1, [place.lent])
    assert own.write([memoryview(bytes(8 * MIB))], lendable=[0])[0].paths == place.paths


def test_ranks_map_what_they_only_read_and_copy_what_they_write(world):
    world.do(
        "import torch, numpy as np\nt = torch.arange(4 << 20); a = np.arange(4 << 20); p = torch.nn.Parameter(torch.ones(4 << 20))"
    )
    ns = world.namespace
    world.run("kinds = (t.untyped_storage().resizable(), a.flags.owndata, p.untyped_storage().resizable())")
    assert ns["kinds"] == (False, False, True)
    before = ns["t"].clone()
    world.run("t[5] = -1; a[6] = -2; v = a[5:8]; same = v.base is a; u = t[4:]; t2 = t * 1")
    assert ns["t"][5] == -1 and ns["a"][6] == -2 and ns["same"] and ns["v"].tolist() == [5, -2, 7] and ns["v"].base is ns["a"]
    assert ns["u"].data_ptr() == ns["t"][4:].data_ptr() and (ns["t2"] == ns["t"]).all() and (ns["t"][6:] == before[6:]).all()
    ns["t"].add_(1)
    ns["a"][:] += 1
    world.run("ok = t[5].item() == 0 and a[6] == -1 and a[7] == 8 and v[1] == -1 and u[0].item() == 5")
    assert ns["ok"]
    ns["t"].resize_((5 << 20) - 3).fill_(4)
    world.run("ok = t.shape[0] == (5 << 20) - 3 and t.sum().item() == 4 * t.shape[0]")
    assert ns["ok"]


def test_a_replaced_array_makes_room(world):
    paths = set()
    for i in range(8):
        world.namespace["big"] = torch.full((16 << 20,), i)
        world.run("s = big[0].item()")
        assert world.namespace["s"] == i
        paths.update(lent.segment.paths for lent in world.end.pool._lent.values())
    assert len(world.end.pool._lent) <= 2 and len(paths) <= 4


def test_ranks_on_other_hosts():
    far = World(2, shared=False)
    try:
        far.do("import torch\nt = torch.ones(1 << 20)")
        far.run("t += 1; u = t * 2; small = 1")
        ns = far.namespace
        assert ns["t"].mean() == 2 and ns["u"].mean() == 4 and far.asked == 1
        far.run("n = small + 1")
        assert far.asked == 0 and ns["n"] == 2
    finally:
        far.close()


def test_empty_and_odd_tensors(world):
    world.do("import torch\ne = torch.empty(0); z = torch.zeros(3, 0); i = torch.tensor(5); b = torch.zeros(3, dtype=torch.bool)")
    world.run("e2 = e; z2 = z.t(); i += 1; b[1] = True; q = torch.empty(0, dtype=torch.int8)")
    ns = world.namespace
    assert ns["e2"] is ns["e"] and ns["z2"].shape == (0, 3) and ns["i"] == 6 and ns["b"].tolist() == [False, True, False]


def test_sweeping_frees_memory_on_both_sides(world):
    world.do("import torch")
    for i in range(6):
        world.run(f"x = torch.full((4 << 20,), {i}.)", reads="torch")
    assert world.namespace["x"][0] == 5
    held = [o for o in world.end.table.objs if isinstance(o, torch.Tensor) and o.numel() > MIB]
    assert len(held) <= 5
    world.run("y = x[0].item()")
    assert world.namespace["y"] == 5


def test_a_changed_array_keeps_its_views(world):
    a = world.namespace["a"] = np.zeros((4, 4))
    row = a[1]
    world.run("a[1] = 7")
    assert row.tolist() == [7] * 4
