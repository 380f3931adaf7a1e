"""Values of priors for the images of a batch, each by name and image number: neither order nor company matters."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from darklens import rng
from darklens.populations.light_models import Disc, Place
from darklens.populations.priors import Prior


class Draws:
    """The random numbers of some images of a seed.

    Args:
        seed: The population's seed.
        indices: Numbers of the images.
        prefix: Put before every name, so that two classes do not share numbers.
    """

    def __init__(self, seed: int, indices: Sequence[int], prefix: str = "") -> None:
        self._seed, self._indices, self._prefix = seed, indices, prefix

    def uniform(self, name: str, n: int) -> Float[np.ndarray, "b n"]:
        """Return n uniform numbers in (0, 1) for each image."""
        return rng.uniforms(self._seed, "parameters", self._prefix + name, rows=self._indices, n=n)

    def one(self, name: str, prior: Prior) -> Float[np.ndarray, " b"]:
        """Return one value for each image."""
        return self.many(name, prior, 1)[:, 0]

    def many(self, name: str, prior: Prior, n: int) -> Float[np.ndarray, "b n"]:
        """Return n values for each image."""
        low, high = prior.bounds()
        if low == high:
            return np.full((len(self._indices), n), low)
        return prior.quantile(self.uniform(name, n))

    def disc(
        self, name: str, radius: Prior, n: int
    ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n"], Float[np.ndarray, "b n"]]:
        """Return radius, x and y of n positions in any direction for each image."""
        r, direction = self.many(f"{name}.radius", radius, n), 2 * math.pi * self.uniform(f"{name}.direction", n)
        return r, r * np.cos(direction), r * np.sin(direction)

    def place(self, name: str, place: Place) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
        """Return x and y of one position for each image."""
        if isinstance(place, Disc):
            _, x, y = self.disc(name, place.radius, 1)
            return x[:, 0], y[:, 0]
        return self.one(f"{name}.x", place.x), self.one(f"{name}.y", place.y)
