"""The likelihood of an image under a model: Poisson deviance, weights and normal equations."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.data.noise_estimate import MEDIAN_OF_SQUARE, local_mean, noise_response, noise_variance
from darklens.fit.detector import Detector, ImagePSFDetector
from darklens.kernels import smooth_fit
from darklens.populations.population import PoissonNoise, Population

Maps = Float[Tensor, "b m m"]
Gain = Float[Tensor, "b 2"]  # ln of image units per count, image value where there is no light

MASKED_EXPOSURE = 1e-6  # relative exposure of a masked pixel
_LARGEST_MASKED_EXPOSURE = 1e-3  # of a masked pixel or block
_MASKED_VARIANCE = 1e12  # of its pixels, if the noise is not Poisson
_DARK_SKY = 2.0  # in units of the sky: fainter pixels measure the noise of the sky
_SMALLEST_RATE = 0.05  # counts per block, lower limit of the expected counts
_SIGNIFICANCE = 2.0  # standard errors above zero from which an extra variance is included
_LARGEST_COUNT_STEP = 1.4  # counts; a larger step between pixel values is due to rounding
_STEP_TOLERANCE = 0.01  # of a step, largest distance of a pixel from a multiple
# Deviance per block and counts per block that the difference of terms gives to a few per cent.
_SMALLEST_PRECISE, _LARGEST_PRECISE = 0.1, 1e5
_SERIES_BELOW, _SERIES_TERMS = 0.02, 8  # of (counts - rate) / rate; exact in float64
_BRIGHT = 3.0  # counts of the source, in units of the sky, of pixels that determine the exposure
_FEWEST_BRIGHT = 200  # of these pixels
_SAME_EXPOSURE = (0.65, 1.5)  # relative exposures that count as 1: other sources change the estimate by as much
_EXPOSURES = (0.2, 5.0)  # smallest and largest relative exposure; others are due to another kind of noise
_N_SAMPLED = 2500  # number of pixels that determine the step


def combined_exposure(exposure: Float[Tensor, "b n n"], combine: Callable[[Tensor], Tensor]) -> Maps:
    """Return the exposure of blocks of pixels; a block with a masked pixel is masked, whatever its value.

    Args:
        exposure: Relative exposure of each pixel.
        combine: Returns the means of blocks.
    """
    is_masked = combine((exposure < _LARGEST_MASKED_EXPOSURE).to(exposure.dtype)) > 0
    return torch.where(is_masked, MASKED_EXPOSURE, combine(exposure))


@dataclass(frozen=True)
class Noise:
    """The noise of b images on a detector.

    For photon counts, the image is scale * (counts - sky) + offset with Poisson counts. Other noise, such as rounding
    to 8 bits or read noise, is an extra variance, the same in all pixels. It is added to the observed and to the
    expected counts, whose distribution stays Poisson to first order.

    Attributes:
        sky: Sky counts per pixel; None if the noise is not Poisson.
        area: Pixels in a block.
        exposure: Relative exposure of each block (b, m, m), or 1.
        extra: Extra variance per pixel, counts^2 (b,).
        variance: Variance of each block (b, m, m), if the noise is not Poisson.
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
        detector: Detector | ImagePSFDetector,
        exposure: Tensor | None = None,
        *,
        area: int | None = None,
    ) -> "Noise":
        """Return the noise of images, without extra variance.

        Args:
            population: Defines whether the noise is Poisson.
            images: Images before the crop and the binning of the detector.
            detector: Detector of the fit.
            exposure: Relative exposure of each pixel; None for a uniform exposure.
            area: Pixels in a block, if the images are binned already.
        """
        is_poisson = isinstance(population.noise, PoissonNoise)
        variance = images.new_zeros(len(images), 1, 1)
        if not is_poisson:
            variance = detector.combine(noise_variance(images[:, None])[:, 0]) / detector.area
        relative = torch.ones_like(images[:, :1, :1])
        if exposure is not None:
            relative = combined_exposure(exposure, detector.combine)
        if not is_poisson and exposure is not None:
            variance = torch.where(relative < _LARGEST_MASKED_EXPOSURE, _MASKED_VARIANCE, variance)
        sky = population.noise.sky if isinstance(population.noise, PoissonNoise) else None
        return cls(sky, area or detector.area, relative, images.new_zeros(len(images)), variance)

    def rows(self, rows: Tensor) -> "Noise":
        """Return the noise of a selection of the images."""
        return replace(self, exposure=self.exposure[rows], extra=self.extra[rows], variance=self.variance[rows])

    def n_pixels(self, like: Maps) -> Float[Tensor, " b"]:
        """Return the number of pixels of each of `like` (b, m, m) that are not masked."""
        return (self.exposure > _LARGEST_MASKED_EXPOSURE).expand_as(like).sum((1, 2)).to(like.dtype)

    def deviance(self, images: Maps, model: Maps, gain: Gain) -> Float[Tensor, " b"]:
        """Return the Poisson deviance, or chi2 if the noise is not Poisson. It is never negative.

        The difference of the terms is exact to 1e-7 of the counts. Where that is not small against the deviance, the
        deviance is computed again from a series, in float64.
        """
        if self.sky is None:
            return ((images - model) ** 2 / self.variance).sum((1, 2))
        deviance = self._deviance_of_terms(images, model, gain)
        smallest, darkest = gain.amin(0)
        largest_peak = ((1 - darkest) / smallest.exp() + self.sky) * self.area * self.exposure.max()
        if bool((deviance.amin() > _SMALLEST_PRECISE * images[0].numel()) & (largest_peak < _LARGEST_PRECISE)):
            return deviance
        peak = ((1 - gain[:, 1]) / gain[:, 0].exp() + self.sky) * self.area * self.exposure.amax((1, 2))
        imprecise = ~((deviance > _SMALLEST_PRECISE * images[0].numel()) & (peak < _LARGEST_PRECISE))
        rows = torch.nonzero(imprecise)[:, 0]
        if len(rows):
            deviance[rows] = self.rows(rows)._deviance_of_series(images[rows], model[rows], gain[rows]).to(deviance)
        return deviance

    def _deviance_of_series(self, images: Maps, model: Maps, gain: Gain) -> Float[Tensor, " b"]:
        """Return the Poisson deviance as a sum of terms none of which is negative, float64."""
        noise = replace(self, exposure=self.exposure.double(), extra=self.extra.double())
        counts = noise._counts(images.double(), gain.double()).clamp_min(0)
        rate = noise._counts(model.double(), gain.double()).clamp_min(_SMALLEST_RATE)
        # (1 + d) ln(1 + d) - d, by its series where the terms cancel.
        d = (counts - rate) / rate
        near = d.abs() < _SERIES_BELOW
        small = torch.where(near, d, 0.0)
        series = torch.zeros_like(d)
        for k in range(_SERIES_TERMS + 1, 1, -1):
            series = 1 / (k * (k - 1)) - small * series
        ratio = 1 + torch.where(near, 0.0, d)
        return 2 * (rate * torch.where(near, small * small * series, torch.xlogy(ratio, ratio) - d)).sum((1, 2))

    def _deviance_of_terms(self, images: Maps, model: Maps, gain: Gain) -> Float[Tensor, " b"]:
        if (computed := self.photons(gain).deviance(images, model)) is not None:
            return computed
        counts = self._counts(images, gain).clamp_min(0)
        rate = self._counts(model, gain).clamp_min(_SMALLEST_RATE)
        # Zero counts contribute zero. torch.xlogy handles this too, but takes four times as long.
        sample = counts.clamp_min(torch.finfo(counts.dtype).tiny)
        return 2 * (rate - counts + counts * torch.log(sample / rate)).sum((1, 2))

    def weight(self, model: Maps, gain: Gain) -> Maps:
        """Return the inverse variance of each block, in image units."""
        if self.sky is None:
            return (1 / self.variance).expand_as(model)
        if (computed := self.photons(gain).weight(model)) is not None:
            return computed
        rate = self._counts(model, gain).clamp_min(_SMALLEST_RATE)
        return (self.area * self.exposure / gain[:, 0, None, None].exp()) ** 2 / rate

    def normal_equations(
        self,
        slopes: Float[Tensor, "n q m m"],
        images: Maps,
        model: Maps,
        gain: Gain,
        *,
        rows: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
        """Return curvature and right-hand side of the normal equations, as the function `normal_equations`.

        Args:
            slopes: Derivatives of n models.
            images: Images on the detector.
            model: Models of the images.
            gain: ln scale and offset of the images.
            rows: The row of `slopes` of each image; None if n = b.
        """
        if self.sky is not None:
            computed = self.photons(gain).normal_equations(slopes, images, model, rows)
            if computed is not None:
                return computed
        selected = slopes if rows is None else slopes[rows]
        return normal_equations(selected, self.weight(model, gain), images - model)

    def with_extra(self, images: Maps, model: Maps, gain: Gain, step: Float[Tensor, " b"]) -> "Noise":
        """Return the noise with an extra variance: that of rounding, or the significant excess in dark sky.

        Args:
            images: Images on the detector.
            model: Model of the images.
            gain: ln scale and offset of the images.
            step: Quantisation step of the pixel values, image units, from `quantisation_steps`; 0 if there is none.
        """
        if self.sky is None:
            return self
        rate = self._counts(model, gain)
        excess = (self._counts(images, gain) - rate) ** 2 - rate
        dark = rate < _DARK_SKY * self.area * self.sky * self.exposure
        n_dark = dark.sum((1, 2)).clamp_min(1)
        mean, mean_rate = (excess * dark).sum((1, 2)) / n_dark, (rate * dark).sum((1, 2)) / n_dark
        surplus = (mean - _SIGNIFICANCE * mean_rate * (2 / n_dark).sqrt()) / self.area
        in_counts = step * self.exposure.mean((1, 2)) / gain[:, 0].exp()
        # A step of one count is due to counting, not to rounding.
        rounding = torch.where(in_counts > _LARGEST_COUNT_STEP, in_counts**2 / 12, 0.0)
        return replace(self, extra=torch.where(step > 0, rounding, surplus.clamp_min(0)))

    def photons(self, gain: Gain) -> smooth_fit.Photons:
        """Return the Poisson noise for the kernels."""
        assert self.sky is not None
        return smooth_fit.Photons(gain, self.exposure, self.extra, self.sky, self.area, _SMALLEST_RATE)

    def _counts(self, maps: Maps, gain: Gain) -> Maps:
        scale, offset = gain[:, 0, None, None].exp(), gain[:, 1, None, None]
        assert self.sky is not None
        per_pixel = ((maps - offset) / scale + self.sky) * self.exposure + self.extra[:, None, None]
        return self.area * per_pixel


def relative_exposure(
    images: Float[Tensor, "b n n"], gain: Gain, sky: float, exposure: Tensor | None = None
) -> Float[Tensor, " b"]:
    """Return the exposures of images in units of that of their population, from the noise of their bright pixels.

    In pixels with at least three times more counts of the source than of the sky, neither the sky nor the read noise
    matters. The estimate scatters by 4 %, and by up to 30 % where the source is not that of the population. It is 1
    unless the noise differs clearly. Noise that is correlated, or of another kind than that of the population, gives
    values far from 1, which are not used either.

    Args:
        images: Images.
        gain: ln scale and offset of the images, from a fit of the smooth lens.
        sky: Sky counts per pixel of the population.
        exposure: Known relative exposure of each pixel, or None.
    """
    scale, offset = gain[:, 0, None, None].exp(), gain[:, 1, None, None]
    rate = ((local_mean(images[:, None])[:, 0] - offset) / scale)[:, 1:-1, 1:-1]
    bright = rate > _BRIGHT * max(sky, 1.0)
    known = torch.ones_like(rate) if exposure is None else exposure.expand_as(images)[:, 1:-1, 1:-1]
    bright &= known > _LARGEST_MASKED_EXPOSURE
    response = noise_response(images[:, None])[:, 0] * known / (scale**2 * (rate + sky))
    median = torch.where(bright, response, torch.nan).flatten(1).nanmedian(1).values
    relative = MEDIAN_OF_SQUARE / median
    low, high = _SAME_EXPOSURE
    differs = ((relative < low) | (relative > high)) & (relative > _EXPOSURES[0]) & (relative < _EXPOSURES[1])
    return torch.where(differs & (bright.sum((1, 2)) >= _FEWEST_BRIGHT), relative, 1.0)


def normal_equations(
    slopes: Float[Tensor, "b q m m"], weight: Maps, difference: Maps
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
    """Return half the second derivatives of chi2 (the curvature), and minus half its first derivatives."""
    if (computed := smooth_fit.normal_equations(slopes, weight, difference)) is not None:
        return computed
    flat = slopes.flatten(2)
    weighted = flat * weight.flatten(1)[:, None]
    return (weighted @ flat.mT).double(), (weighted @ difference.flatten(1)[:, :, None])[..., 0].double()


def quantisation_steps(images: Float[Tensor, "b n n"]) -> Float[Tensor, " b"]:
    """Return the quantisation step of each image scaled to 0..1; 0 if its values are not quantised."""
    flat = images.flatten(1)
    sample = flat[:, :: max(1, flat.shape[1] // _N_SAMPLED)]
    # numpy sorts faster than torch.
    sample = torch.from_numpy(np.sort(sample.numpy(), axis=1)) if sample.device.type == "cpu" else sample.sort(1).values
    gaps = sample.diff(dim=1)
    step = torch.where(gaps > 1e-5, gaps, torch.inf).amin(1)
    multiple = sample / step[:, None]
    # The largest value refines the smallest gap; otherwise its rounding error would grow with each multiple.
    top = multiple[:, -1:].round().clamp_min(1)
    multiple = sample / (sample[:, -1:] / top)
    is_quantised = ((multiple - multiple.round()).abs() < _STEP_TOLERANCE).all(1)
    return torch.where(is_quantised & torch.isfinite(step), (sample[:, -1:] / top)[:, 0], 0.0)
