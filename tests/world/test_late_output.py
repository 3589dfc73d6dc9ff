"""Output that comes when no cell takes it: threads of former cells, and values that print while they are brought home."""

from __future__ import annotations

from tests.notebook import Notebook

LATER = "%%parallel --on 1\nimport threading\nthreading.Timer(0.3, print, ['late']).start()"
LOUD = """class Loud:
    def __init__(self, rank): self.rank = rank
    def __reduce__(self):
        print('packed')
        return Loud, (self.rank,)"""
MAKE = """%%parallel
import torch, torch.distributed as dist
loud, big = [Loud(dist.get_rank()) for _ in range(9)], torch.zeros(300_000) + dist.get_rank()"""


def test_between_cells_it_appears_with_the_next_one(notebook: Notebook) -> None:
    notebook.run(LATER)
    notebook.run("import time; time.sleep(0.6)")
    assert notebook.run("%%parallel\nprint('on')").lines == ["[1] late", "on"]
    assert notebook.run("%%parallel\nprint('on')").lines == ["on"]


def test_of_a_rank_that_takes_no_part_it_appears_when_the_cell_ends(notebook: Notebook) -> None:
    notebook.run(LATER)
    assert notebook.run("%%parallel --on 0\nimport time; time.sleep(0.6)\nprint('on')").lines == ["on", "[1] late"]


def test_while_values_are_brought_home_it_is_counted(notebook: Notebook) -> None:
    """The next cell waits until it has seen all output that there was before its end."""
    notebook.run(LOUD)
    for _ in range(3):
        assert set(notebook.run(MAKE, timeout=30).lines) <= {"packed", "[0] packed", "[1] packed"}
        assert notebook.run("%%parallel\nprint('on')", timeout=30).lines[-1] == "on"
