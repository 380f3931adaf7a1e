"""The compiled engine: its images differ by rounding only, and not with the batch."""

import shutil
import subprocess
import sys

import pytest

from darklens.errors import ConfigError
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch

POPULATION = populations.get("common-test-i", ["field.n_pixels=40", "stored=counts"])


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        simulate_batch(POPULATION, 0, [0], engine="compiled")


# In a process of its own: the shape checks that the tests put into every function cannot be traced.
COMPARISON = """
import numpy as np, torch
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch
from darklens.simulate.draw import draw
from darklens.simulate.engine import engine
from darklens.simulate.render import render
population = populations.get("common-test-i", ["field.n_pixels=40", "stored=counts"])
truth = draw(population, 0, [2])
torch.testing.assert_close(
    render(population, truth, trace=engine("compiled").trace), render(population, truth), rtol=2e-5, atol=1e-4
)
compiled, _ = simulate_batch(population, 0, [0, 2, 5], engine="compiled")
eager, _ = simulate_batch(population, 0, [0, 2, 5])
assert (compiled != eager).mean() < 1e-3 and np.abs(compiled - eager).max() <= 1
alone, _ = simulate_batch(population, 0, [5], engine="compiled")
assert alone[0].tobytes() == compiled[2].tobytes()
print("equal")
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_compiled_images_differ_by_rounding_only_and_not_with_the_batch():
    done = subprocess.run([sys.executable, "-c", COMPARISON], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]
