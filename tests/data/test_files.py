"""Files that a lockstep cell writes are written once and whole, and are found again by every rank."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from nbpar.parallel import mode
from tests.ranks import run_ranks

CELL = """
import os, pickle, shutil, json
from pathlib import Path
import numpy as np
import torch

with open("who.txt", "w") as f:
    f.write(str(os.getpid()))
found = [open("who.txt").read() == str(os.getpid())]
with open("log.txt", "a") as f:
    f.write("line\\n" * 1000)
found.append(open("log.txt").read().count("line"))
os.makedirs("run/deep", exist_ok=True)
os.makedirs("run/deep", exist_ok=True)
if not os.path.exists("once"):
    os.mkdir("once")
Path("run/deep/notes.json").write_text(json.dumps({"a": 1}))
found.append(json.loads(Path("run/deep/notes.json").read_text())["a"])
model = torch.nn.Linear(300, 300)
torch.save(model.state_dict(), "model.pt")
found.append(torch.equal(torch.load("model.pt")["weight"], model.weight))
torch.save(model.state_dict(), Path("run") / "model.pt.tmp")
os.replace("run/model.pt.tmp", "run/model.pt")
found.append((os.path.exists("run/model.pt"), os.path.exists("run/model.pt.tmp"), Path("run/model.pt").stat().st_size > 1000))
np.save("array.npy", np.arange(5000))
found.append(int(np.load("array.npy").sum()))
with open("object.pkl", "wb") as f:
    pickle.dump({"x": [1, 2]}, f)
found.append(pickle.load(open("object.pkl", "rb")))
found.append(open("given.txt").read())
os.remove("old.txt")
found.append(os.path.exists("old.txt"))
shutil.copyfile("array.npy", "copy.npy")
shutil.rmtree("tree")
found.append(os.path.exists("tree"))
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
plt.plot([1, 2]); plt.savefig("figure.png"); plt.savefig("figure.svg")
import tempfile
with tempfile.TemporaryDirectory() as d:
    Path(d, "t").write_text("t")
    found.append(sorted(os.listdir(d)))
"""


def cell(folder: str) -> tuple[list[Any], int]:
    os.chdir(folder)
    namespace: dict[str, Any] = {}
    before = [open, os.stat, os.mkdir, torch.save, shutil.rmtree]
    with mode("data", {}, namespace):
        exec(CELL, namespace)
    assert before == [open, os.stat, os.mkdir, torch.save, shutil.rmtree]
    return namespace["found"], os.getpid()


def test_written_once_and_whole(tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given")
    (tmp_path / "log.txt").write_text("first\n")
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "tree" / "branch").mkdir(parents=True)
    (tmp_path / "tree" / "branch" / "leaf").write_text("leaf")
    (first, pid), (second, _) = run_ranks(2, cell, str(tmp_path), backend="gloo")
    assert first == second == [True, 1000, 1, True, (True, False, True), 12497500, {"x": [1, 2]}, "given", False, False, ["t"]]
    assert (tmp_path / "who.txt").read_text() == str(pid)
    assert (tmp_path / "log.txt").read_text() == "first\n" + "line\n" * 1000
    assert torch.load(tmp_path / "model.pt")["weight"].shape == (300, 300)
    assert pickle.loads((tmp_path / "object.pkl").read_bytes()) == {"x": [1, 2]}
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {
        "who.txt", "log.txt", "given.txt", "run", "run/deep", "run/deep/notes.json", "run/model.pt", "once", "model.pt",
        "array.npy", "copy.npy", "object.pkl", "figure.png", "figure.svg",
    }  # fmt: skip
    assert (tmp_path / "figure.png").stat().st_size > 1000
