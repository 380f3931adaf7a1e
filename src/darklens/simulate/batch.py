"""A population, a seed and image numbers to images: the one function that every executor and the stream call."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from darklens.simulate.draw import draw, label_of
from darklens.simulate.populations import Population
from darklens.simulate.render import observe, render


def simulate_batch(population: Population, seed: int, indices: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Simulate the images with the given numbers.

    Returns:
        Images (b, 1, n, n) float32, and the truth columns with `label`. Image i is the same bytes in any batch.
    """
    truth = draw(population, seed, indices)
    with _one_thread():
        # One at a time: vectorised functions round the end of a long array differently from its middle, so in a batch
        # an image's last bit would depend on its neighbours and on the number of threads (docs/decisions/0004).
        rate = torch.cat([render(population, {k: v[i : i + 1] for k, v in truth.items()}) for i in range(len(indices))])
    images = observe(population, rate, truth, seed=seed, indices=indices)
    return images, {"label": np.array([label_of(population, i) for i in indices], dtype=np.int64), **truth}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
