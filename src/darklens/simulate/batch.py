"""A population, a seed and image numbers to images: the one function that every executor and the stream call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from darklens.simulate import engine as engines
from darklens.simulate.detector import observe
from darklens.simulate.draw import Truth, draw, label_of
from darklens.simulate.engine import EngineName
from darklens.simulate.populations import Population
from darklens.simulate.render import render


def simulate_batch(
    population: Population,
    seed: int,
    indices: Sequence[int],
    *,
    engine: EngineName = "eager",
    device: torch.device | str = "cpu",
) -> tuple[Float[np.ndarray, "b 1 n n"], Truth]:
    """Simulate the images with the given numbers.

    Args:
        population: What to simulate.
        seed: With the number, fixes an image.
        indices: Numbers of the images.
        engine: See `darklens.simulate.engine`; it decides the last bits.
        device: "cpu" or "cuda".

    Returns:
        Images (b, 1, n, n) float32, and the truth columns with `label`. On the CPU, image i is the same bytes in any
        batch, on any number of threads. On a GPU the whole batch is rendered at once and bytes depend on the device.
    """
    truth, how = draw(population, seed, indices), engines.engine(engine)
    with torch.no_grad():
        if torch.device(device).type == "cpu":
            images = _one_by_one(population, seed, indices, truth, how)
        else:
            rate = render(population, truth, device=device, trace=how.trace)
            images = observe(population, rate, truth, seed=seed, indices=indices).cpu().numpy()
    return images, {"label": np.array([label_of(population, i) for i in indices], dtype=np.int64), **truth}


def _one_by_one(
    population: Population, seed: int, indices: Sequence[int], truth: Truth, how: engines.Engine
) -> Float[np.ndarray, "b 1 n n"]:
    """Render images one at a time on one thread.

    Vectorised functions round the end of a long array differently from its middle, so in a batch an image's last bit
    would depend on its neighbours and on the number of threads (docs/decisions/0004). One image's arrays also fit
    the processor's cache.
    """
    n = population.field.n_pixels
    out = torch.empty(len(indices), 1, n, n)
    tensors = {name: torch.from_numpy(column).float() for name, column in truth.items()}
    with _one_thread():
        for row, index in enumerate(indices):
            own = {name: column[row : row + 1] for name, column in tensors.items()}
            rate = render(population, own, trace=how.trace)
            out[row] = observe(population, rate, own, seed=seed, indices=[index], expand=how.expand)[0]
    images: np.ndarray = out.numpy()
    return images


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
