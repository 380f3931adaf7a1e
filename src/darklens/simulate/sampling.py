"""Samples from priors, for the images of a batch. A value depends on its name and the number of its image alone."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from darklens import rng
from darklens.populations.light_models import PolarPosition, Position
from darklens.populations.priors import Prior

PerImage = Float[np.ndarray, " b"]
SeveralPerImage = Float[np.ndarray, "b n"]


class PriorSampler:
    """Samples of priors for b images. Neither their order nor the other images of the batch change a value.

    Args:
        seed: Seed of the simulation.
        indices: Numbers of the images.
        prefix: Put before each name, so that classes and components have independent random numbers.
    """

    def __init__(self, seed: int, indices: Sequence[int], prefix: str = "") -> None:
        self._seed, self._indices, self._prefix = seed, indices, prefix

    def within(self, name: str) -> "PriorSampler":
        """Return the sampler of a component, with its name before each name."""
        return PriorSampler(self._seed, self._indices, f"{self._prefix}{name}.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._indices)

    def uniform(self, name: str, n: int) -> SeveralPerImage:
        """Return n uniform numbers in (0, 1) for each image."""
        return rng.uniforms(self._seed, "parameters", self._prefix + name, rows=self._indices, n=n)

    def one(self, name: str, prior: Prior) -> PerImage:
        """Return one value for each image."""
        return self.many(name, prior, 1)[:, 0]

    def many(self, name: str, prior: Prior, n: int) -> SeveralPerImage:
        """Return n values for each image."""
        low, high = prior.bounds()
        if low == high:
            return np.full((len(self._indices), n), low)
        return prior.quantile(self.uniform(name, n))

    def polar(self, name: str, radius: Prior, n: int) -> tuple[SeveralPerImage, SeveralPerImage, SeveralPerImage]:
        """Return radius, x and y of n positions for each image, in the unit of `radius`; directions are uniform."""
        r, direction = self.many(f"{name}.radius", radius, n), 2 * math.pi * self.uniform(f"{name}.direction", n)
        return r, r * np.cos(direction), r * np.sin(direction)

    def position(self, name: str, position: Position) -> tuple[PerImage, PerImage]:
        """Return x and y (arcsec) of one position for each image."""
        if isinstance(position, PolarPosition):
            _, x, y = self.polar(name, position.radius, 1)
            return x[:, 0], y[:, 0]
        return self.one(f"{name}.x", position.x), self.one(f"{name}.y", position.y)
