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
from darklens.simulate.render import alike


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
        batch, on any number of threads. On a GPU bytes depend on the device.

    Raises:
        ConfigError: If the compiled engine is asked for where there is no C++ compiler.
    """
    engines.check(engine)
    place, n = torch.device(device), population.field.n_pixels
    truth = draw(population, seed, indices)
    values = {name: torch.from_numpy(column).to(place, torch.float32) for name, column in truth.items()}
    out = np.empty((len(indices), 1, n, n), dtype=np.float32)
    with torch.no_grad(), _one_thread():
        for present, rows in alike(values).items():
            how = engines.engine(engine, population, present, place)
            for some in torch.split(rows, how.at_once):
                missing = how.at_once - len(some) if how.fixed else 0
                padded = torch.cat([some, some[-1:].expand(missing)])
                value = {name: column[padded] for name, column in values.items()}
                rate = how.render(population, value)
                numbers = [indices[i] for i in padded.tolist()]
                images = observe(population, rate, value, seed=seed, indices=numbers, expand=how.expand)
                out[some.cpu().numpy()] = images[: len(some)].cpu().numpy()
    return out, {"label": np.array([label_of(population, i) for i in indices], dtype=np.int64), **truth}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Parallelism comes from processes, one a core; the number of threads can decide an image's last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
