"""Simulation of a batch of images from a population, a seed and the numbers of the images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from darklens.errors import ConfigError
from darklens.populations.population import Population
from darklens.simulate.backend import Backend, check, renderer
from darklens.simulate.detection import observe
from darklens.simulate.render import group_by_substructure
from darklens.simulate.truth import Truth, draw, label_of


def simulate_batch(
    population: Population,
    seed: int,
    indices: Sequence[int],
    *,
    backend: Backend = "eager",
    device: torch.device | str = "cpu",
) -> tuple[Float[np.ndarray, "b 1 n n"], Truth]:
    """Simulate the images with the given numbers.

    Args:
        population: What to simulate.
        seed: With its number, fixes an image.
        indices: Numbers of the images.
        backend: See `darklens.simulate.backend`; it decides the last bits.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        Images (b, 1, n, n) float32, and the truth columns with `label`. On the CPU the bytes of an image do not depend
        on the batch or the number of threads. On a GPU they depend on the device.

    Raises:
        ConfigError: For the compiled backend without a C++ compiler, or if an image is not finite, as are images
            without contrast that are to be scaled to their range.
    """
    check(backend)
    on, n = torch.device(device), population.field.n_pixels
    truth = draw(population, seed, indices)
    values = {name: torch.from_numpy(column).to(on, torch.float32) for name, column in truth.items()}
    out = np.empty((len(indices), 1, n, n), dtype=np.float32)
    with torch.no_grad(), _one_thread():
        for present, rows in group_by_substructure(values).items():
            batch_renderer = renderer(backend, population, present, on)
            for batch in torch.split(rows, batch_renderer.batch_size):
                n_padding = batch_renderer.batch_size - len(batch) if batch_renderer.fixed_size else 0
                padded = torch.cat([batch, batch[-1:].expand(n_padding)])
                value = {name: column[padded] for name, column in values.items()}
                rate = batch_renderer.render(population, value)
                numbers = [indices[i] for i in padded.tolist()]
                images = observe(population, rate, value, seed=seed, indices=numbers, expand=batch_renderer.expand)
                out[batch.cpu().numpy()] = images[: len(batch)].cpu().numpy()
    bad = ~np.isfinite(out).all((1, 2, 3))
    if bad.any():
        raise ConfigError(
            f"{population.name}: image {indices[int(bad.argmax())]} is not finite or has no contrast; check the "
            "brightness, the sky, the noise and the masses of the population."
        )
    return out, {"label": np.array([label_of(population, i) for i in indices], dtype=np.int64), **truth}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: processes run in parallel, and the number of threads can change the last bits of an image."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
