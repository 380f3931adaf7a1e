"""How far an image is from a model: the deviance, twice the log-likelihood that a perfect model would gain."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.data.noise_estimate import noise_variance
from darklens.fit.detector import Detector
from darklens.kernels import smooth_fit
from darklens.populations.population import PoissonNoise, Population

Maps = Float[Tensor, "b m m"]
Gain = Float[Tensor, "b 2"]  # ln of image units per count, image units at no light

_FAINT = 2.0  # times the sky: pixels that tell the noise of a dark sky
_SMALLEST_RATE = 0.05  # counts per block
_DOUBT = 2.0  # standard errors by which a further variance must show
_COUNT = 1.4  # counts: a larger step between values is of rounding
_EXACT = 0.01  # of a step, by which pixels may miss its multiples
_SAMPLE = 2500  # pixels that tell the step


@dataclass(frozen=True)
class Noise:
    """The noise of b images on a detector.

    Photon counts: the image is scale * (counts - sky) + offset, counts are Poisson, and noise of any other origin
    (rounding to 8 bits, read-out) is a further variance, alike in all pixels. A Poisson variable moved and counted
    with its variance in that way stays Poisson, to first order.

    Attributes:
        sky: Counts of sky per pixel; None where noise is not of photon counts.
        area: Pixels in a block.
        exposure: Relative exposure of each block (b, m, m) or 1.
        extra: Further variance per pixel, counts^2 (b,).
        variance: Of each block, where noise is not of photon counts (b, m, m).
    """

    sky: float | None
    area: int
    exposure: Tensor
    extra: Float[Tensor, " b"]
    variance: Tensor

    @classmethod
    def of(
        cls,
        population: Population,
        images: Float[Tensor, "b n n"],
        detector: Detector,
        exposure: Tensor | None = None,
        *,
        area: int | None = None,
    ) -> "Noise":
        """Return the noise of images in which nothing is known yet of a further variance.

        Args:
            population: Says whether noise is that of photon counts.
            images: Before the detector's crop and blocks.
            detector: Where they are compared.
            exposure: Relative exposure of each pixel; none: alike.
            area: Pixels in a block, if the images are means of blocks already.
        """
        photons = isinstance(population.noise, PoissonNoise)
        variance = images.new_zeros(len(images), 1, 1)
        if not photons:
            variance = detector.combine(noise_variance(images[:, None])[:, 0]) / detector.area
        relative = torch.ones_like(images[:, :1, :1]) if exposure is None else detector.combine(exposure)
        sky = population.noise.sky if isinstance(population.noise, PoissonNoise) else None
        return cls(sky, area or detector.area, relative, images.new_zeros(len(images)), variance)

    def rows(self, rows: Tensor) -> "Noise":
        """Return the noise of some of the images."""
        return replace(self, exposure=self.exposure[rows], extra=self.extra[rows], variance=self.variance[rows])

    def deviance(self, images: Maps, model: Maps, gain: Gain) -> Float[Tensor, " b"]:
        """Return the deviance; for noise that is not of photon counts, chi2."""
        if self.sky is None:
            return ((images - model) ** 2 / self.variance).sum((1, 2))
        if (computed := self._photons(gain).deviance(images, model)) is not None:
            return computed
        counts = self._counts(images, gain).clamp_min(0)
        rate = self._counts(model, gain).clamp_min(_SMALLEST_RATE)
        # Nothing seen counts nothing; torch.xlogy, which says so, takes four times as long.
        sample = counts.clamp_min(torch.finfo(counts.dtype).tiny)
        return 2 * (rate - counts + counts * torch.log(sample / rate)).sum((1, 2))

    def weight(self, model: Maps, gain: Gain) -> Maps:
        """Return one over the variance of each block, in image units."""
        if self.sky is None:
            return (1 / self.variance).expand_as(model)
        if (computed := self._photons(gain).weight(model)) is not None:
            return computed
        rate = self._counts(model, gain).clamp_min(_SMALLEST_RATE)
        return (self.area * self.exposure / gain[:, 0, None, None].exp()) ** 2 / rate

    def normal_equations(
        self, slopes: Float[Tensor, "b q m m"], images: Maps, model: Maps, gain: Gain
    ) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
        """Return curvature and right-hand side of the normal equations, see the function of this name."""
        if (
            self.sky is not None
            and (computed := self._photons(gain).normal_equations(slopes, images, model)) is not None
        ):
            return computed
        return normal_equations(slopes, self.weight(model, gain), images - model)

    def with_extra(self, images: Maps, model: Maps, gain: Gain, step: Float[Tensor, " b"]) -> "Noise":
        """Return the noise with a further variance: that of rounding, or what blocks of dark sky show beyond doubt.

        Args:
            images: On the detector.
            model: Of them.
            gain: Theirs.
            step: Of which all pixels are multiples, image units (`steps_of`); 0: of none.
        """
        if self.sky is None:
            return self
        rate = self._counts(model, gain)
        excess = (self._counts(images, gain) - rate) ** 2 - rate
        faint = rate < _FAINT * self.area * self.sky * self.exposure
        number = faint.sum((1, 2)).clamp_min(1)
        mean, of_rate = (excess * faint).sum((1, 2)) / number, (rate * faint).sum((1, 2)) / number
        surplus = (mean - _DOUBT * of_rate * (2 / number).sqrt()) / self.area
        in_counts = step * self.exposure.mean((1, 2)) / gain[:, 0].exp()
        # A step of one count is the counting itself.
        rounding = torch.where(in_counts > _COUNT, in_counts**2 / 12, 0.0)
        return replace(self, extra=torch.where(step > 0, rounding, surplus.clamp_min(0)))

    def _photons(self, gain: Gain) -> smooth_fit.Photons:
        assert self.sky is not None
        return smooth_fit.Photons(gain, self.exposure, self.extra, self.sky, self.area, _SMALLEST_RATE)

    def _counts(self, maps: Maps, gain: Gain) -> Maps:
        scale, offset = gain[:, 0, None, None].exp(), gain[:, 1, None, None]
        assert self.sky is not None
        per_pixel = ((maps - offset) / scale + self.sky) * self.exposure + self.extra[:, None, None]
        return self.area * per_pixel


def normal_equations(
    slopes: Float[Tensor, "b q m m"], weight: Maps, difference: Maps
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
    """Return curvature and right-hand side: half the second derivatives of chi2 and minus half its first."""
    if (computed := smooth_fit.normal_equations(slopes, weight, difference)) is not None:
        return computed
    flat = slopes.flatten(2)
    weighted = flat * weight.flatten(1)[:, None]
    return (weighted @ flat.mT).double(), (weighted @ difference.flatten(1)[:, :, None])[..., 0].double()


def steps_of(images: Float[Tensor, "b n n"]) -> Float[Tensor, " b"]:
    """Return the step of which the pixels of each image from 0 to 1 are multiples, 0 where there is none."""
    flat = images.flatten(1)
    sample = flat[:, :: max(1, flat.shape[1] // _SAMPLE)]
    # numpy's sort is the faster one.
    sample = torch.from_numpy(np.sort(sample.numpy(), axis=1)) if sample.device.type == "cpu" else sample.sort(1).values
    gaps = sample.diff(dim=1)
    step = torch.where(gaps > 1e-5, gaps, torch.inf).amin(1)
    multiple = sample / step[:, None]
    # A rounded smallest gap is refined by the largest value, or its error would grow with each multiple.
    top = multiple[:, -1:].round().clamp_min(1)
    multiple = sample / (sample[:, -1:] / top)
    computed = ((multiple - multiple.round()).abs() < _EXACT).all(1)
    return torch.where(computed & torch.isfinite(step), (sample[:, -1:] / top)[:, 0], 0.0)
