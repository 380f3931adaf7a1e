"""The compiled backend: its images differ by rounding only, and not with the batch."""

import shutil
import subprocess
import sys

import pytest

from darklens import populations
from darklens.errors import ConfigError
from darklens.simulate.batch import simulate_batch

POPULATION = populations.get("common-test-i", ["field.n_pixels=40", "stored=counts"])


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        simulate_batch(POPULATION, 0, [0], backend="compiled")


# In a process of its own: the shape checks that the tests put into every function cannot be traced.
COMPARISON = """
import numpy as np, torch
from darklens import populations
from darklens.simulate.batch import simulate_batch
from darklens.simulate.truth import draw
from darklens.simulate.backend import renderer
from darklens.simulate.render import group_by_substructure, render
population = populations.get("common-test-i", ["field.n_pixels=37", "stored=counts"])
for label in range(3):
    truth = draw(population, 0, [label + 3 * i for i in range(8)])
    value = {name: torch.from_numpy(column).float() for name, column in truth.items()}
    (present,) = group_by_substructure(value)
    fused = renderer("compiled", population, present, torch.device("cpu")).render(population, value)
    torch.testing.assert_close(fused, render(population, truth), rtol=2e-5, atol=1e-4)
numbers = list(range(33))
compiled, _ = simulate_batch(population, 0, numbers, backend="compiled")
eager, _ = simulate_batch(population, 0, numbers)
assert (compiled != eager).mean() < 1e-3 and np.abs(compiled - eager).max() <= 1
for order in (numbers[::-1], numbers[5:], numbers[1::2], [31], [7, 7, 8]):
    again, _ = simulate_batch(population, 0, order, backend="compiled")
    assert again.tobytes() == compiled[order].tobytes()
print("equal")
"""


@pytest.mark.sweep
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_compiled_images_differ_by_rounding_only_and_not_with_the_batch():
    done = subprocess.run([sys.executable, "-c", COMPARISON], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]
