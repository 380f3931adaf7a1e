"""Detection: photon noise, background and scaling of noise-free images."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from darklens import rng
from darklens.physics import optics
from darklens.populations.population import ExposureNoise, InstrumentNoise, PoissonNoise, Population
from darklens.simulate.truth import Truth


def observe(
    population: Population,
    rate: Float[Tensor, "b n n"],
    truth: "Truth | dict[str, Tensor]",
    *,
    seed: int,
    indices: Sequence[int],
    expand: optics.Expansion = optics.settled_counts,
) -> Float[Tensor, "b 1 n n"]:
    """Return the images that the detector stores, float32.

    Args:
        population: Its noise, and the scaling of stored images.
        rate: Noise-free images, counts (or rate) per pixel.
        truth: Columns with `exposure` in seconds.
        seed: Seed of the simulation.
        indices: Numbers of the images; with the seed they fix the noise.
        expand: `optics.settled_counts`, or a compiled form of it.
    """
    noise, pixels = population.noise, _NoisePixels(seed, indices, expand)
    exposure = torch.as_tensor(truth["exposure"], dtype=rate.dtype, device=rate.device)[:, None, None]
    if isinstance(noise, PoissonNoise):
        images = pixels.poisson("noise", rate + noise.sky)
    elif isinstance(noise, ExposureNoise):
        images = _exposure(noise, rate, exposure, pixels)
    else:
        images = _instrument(noise, rate, exposure, pixels)
    if population.stored == "minmax":
        low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
        images = (images - low) / (high - low)
    return images.to(torch.float32)[:, None]


def _exposure(noise: ExposureNoise, rate: Tensor, exposure: Tensor, pixels: "_NoisePixels") -> Tensor:
    expected = rate * exposure
    counts = pixels.poisson("noise", expected) + noise.background_rms * exposure * pixels.normal("background", rate)
    if not noise.legacy_noise:
        return counts
    # DeepLenseSim adds Poisson noise and background, clips at zero, and adds Poisson noise again.
    return pixels.poisson("legacy", counts.clamp_min(0))


def _instrument(noise: InstrumentNoise, rate: Tensor, exposure: Tensor, pixels: "_NoisePixels") -> Tensor:
    """Return electrons per second, with the mean sky subtracted."""
    instrument = noise.instrument
    electrons = pixels.poisson("noise", (rate + instrument.sky_rate) * exposure)
    read_rms = instrument.read_noise * instrument.n_exposures**0.5
    signal: Tensor = (electrons + read_rms * pixels.normal("read", rate)) / exposure - instrument.sky_rate
    return signal


class _NoisePixels:
    """Random pixels of the images of a batch, from random streams that the number of the image fixes."""

    def __init__(self, seed: int, indices: Sequence[int], expand: optics.Expansion) -> None:
        self._seed, self._indices, self._expand = seed, indices, expand

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Return standard normal numbers in the shape and type of `like`."""
        out = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        for image, generator in zip(out, self._generators(name, like.device), strict=True):
            image.normal_(generator=generator)
        return out.to(like.dtype)

    def poisson(self, name: str, rate: Tensor) -> Tensor:
        """Return counts of these rates."""
        if rate.device.type == "cpu":
            return optics.poisson_counts(
                rate,
                self.normal(name, rate),
                lambda row: rng.generator(self._seed, name, self._indices[row]),
                expand=self._expand,
            )
        generators = self._generators(name, rate.device)
        return torch.stack([torch.poisson(r, generator=g) for r, g in zip(rate, generators, strict=True)])

    def _generators(self, name: str, device: torch.device) -> Iterator[torch.Generator]:
        for index in self._indices:
            yield torch.Generator(device).manual_seed(rng.integer_seed(self._seed, name, index))
