"""Global random streams as raw bytes."""

# ruff: noqa: E501

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from nbpar.values.random_state import RandomStates


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_a_stream_goes_on_where_it_was():
    states = RandomStates()
    random.gauss(0, 1), np.random.randn()
    begin = states.capture()
    first = draw()
    states.restore(begin)
    assert draw() == first and set(begin) >= {"random", "numpy", "torch"} and all(type(b) is bytes for b in begin.values())


@pytest.mark.parametrize("name, use", [("random", random.random), ("numpy", np.random.randn), ("torch", lambda: torch.rand(1))])
def test_only_what_moved_is_sent(name, use):
    states = RandomStates()
    before = states.capture()
    assert states.changed_since(before) == {}
    use()
    assert set(states.changed_since(before)) == {name}


def test_nothing_is_imported_for_it():
    code = (
        "import sys, random; from nbpar.values.random_state import RandomStates as R; s = R().capture(); R().restore(s)\n"
        "assert list(s) == ['random'] and 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_process_goes_on():
    states = RandomStates().capture()
    code = (
        "import sys, pickle; from nbpar.values.random_state import RandomStates\nRandomStates().restore(pickle.load(sys.stdin.buffer))\n"
        "import random, numpy, torch; print(repr((random.random(), numpy.random.rand(), torch.rand(1).item())))"
    )
    import pickle

    result = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(states), capture_output=True, check=True)
    assert result.stdout.decode().strip() == repr((random.random(), np.random.rand(), torch.rand(1).item()))


def test_numpys_stream_of_another_kind_is_named():
    old = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        with pytest.raises(TypeError, match="PCG64"):
            RandomStates().capture()
    finally:
        np.random.set_bit_generator(old)
