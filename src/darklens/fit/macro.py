"""The fit of the smooth lens to images in any linear scale: `fit_macro(images, population)`.

The best match in a bank of simulated smooth lenses starts a Levenberg-Marquardt iteration. It runs on coarsely sampled
light first, then with the sampling of the population, and last on all pixels of the image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.fit.fitter import Fitter, Images, fitter_of
from darklens.fit.levenberg import FitState, minimise
from darklens.fit.model import FitParameters, Model
from darklens.fit.noise import Noise, quantisation_steps, relative_exposure
from darklens.kernels.smooth_fit import load_for
from darklens.populations.population import Population

Result = TypeVar("Result", bound=Any)  # a dataclass of tensors

BATCH_SIZE = 96  # images in a fit of all hypotheses
_GPU_BATCHES = 8  # times as large on a GPU, whose time goes into launching kernels otherwise
_SMOOTH_BATCH_SIZE, _ALL_PIXELS_BATCH_SIZE = 128, 16  # images in a fit of the smooth lens: binned, and on all pixels
_COARSE_STEPS, _FINE_STEPS, _LAST_STEPS = 10, 8, 6
_REUSE_SLOPES_BELOW = 30.0  # predicted reduction of the deviance; a smaller step is a few standard deviations
_MIRROR_ABOVE = 1.25  # the same for free centres: the lens may be on the opposite side of the source
CONVERGED = 1.0  # largest predicted reduction of the deviance of a converged fit


@dataclass(frozen=True)
class MacroFit:
    """Smooth lenses fitted to b images, in the units of the images.

    Attributes:
        names: Names of the p parameters. Positions and radii are in arcsec; `ln_` marks natural logarithms.
        parameters: Best-fit values (b, p).
        covariance: Covariance of the parameters (b, p, p), marginalised over scale and offset.
        scale: Image units per unit of the population's brightness (b,).
        offset: Image value where there is no light (b,).
        model: Noise-free image of the smooth lens (b, n, n), image units.
        residual: (image - model) / sigma (b, n, n); white with variance 1 for a smooth lens.
        reduced_chi2: Sum of squared residuals per degree of freedom (b,).
        converged: Whether another step is predicted to lower the deviance by less than 1 (b,).
        relative_exposure: Exposure in units of that of the population, estimated from the noise; 1 where it does not
            differ clearly (b,).
    """

    names: tuple[str, ...]
    parameters: Float[Tensor, "b p"]
    covariance: Float[Tensor, "b p p"]
    scale: Float[Tensor, " b"]
    offset: Float[Tensor, " b"]
    model: Images
    residual: Images
    reduced_chi2: Float[Tensor, " b"]
    converged: Bool[Tensor, " b"]
    relative_exposure: Float[Tensor, " b"]

    def in_units(self, low: Float[Tensor, " b"], spread: Float[Tensor, " b"]) -> "MacroFit":
        """Return the fits in units in which the images are low + spread * (the fitted images)."""
        return replace(
            self,
            scale=self.scale * spread,
            offset=self.offset * spread + low,
            model=self.model * spread[:, None, None] + low[:, None, None],
        )


@torch.no_grad()
def fit_macro(
    images: Images,
    population: Population | str,
    *,
    exposure: Images | None = None,
    centred: bool = True,
) -> MacroFit:
    """Fit the smooth lens of a population to images in any linear scale: counts, rates, or scaled to 0..1.

    Args:
        images: Images on the population's detector, with any unit and zero point.
        population: Defines the lens model, the PSF and the noise; or its name.
        exposure: Relative exposure of each pixel, if images are counts divided by exposure.
        centred: Whether the lens is fixed at the centre of the image. If not, its position is fitted, within 0.3 arcsec
            of the centre.

    Raises:
        ConfigError: If the population's light is not Sersic profiles.
        ValueError: If the images are not of the population's size, or not finite, or the exposure is not theirs.
    """
    fitter = fitter_of(population, centred=centred, device=images.device)
    check_images(images, fitter)
    check_exposure(exposure, images)
    load_for(len(images))
    return concatenate(
        [
            fits
            for block, block_exposure in batches(images, exposure, _SMOOTH_BATCH_SIZE)
            for fits in _finish(block, fitter, block_exposure)
        ]
    )


def batch_size_on(device: torch.device, batch_size: int = BATCH_SIZE) -> int:
    """Return the number of images in a batch on a device, for a number that suits the cache of a CPU."""
    return batch_size if device.type == "cpu" else _GPU_BATCHES * batch_size


def batches(
    images: Images, exposure: Images | None = None, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Images, Images | None]]:
    """Yield batches of images, with their exposures."""
    size = batch_size_on(images.device, batch_size)
    blocks = torch.split(images.float(), size)
    exposures = [None] * len(blocks) if exposure is None else torch.split(exposure.float(), size)
    yield from zip(blocks, exposures, strict=True)


def concatenate(parts: Sequence[Result]) -> Result:
    """Concatenate the results of several batches; fields that are not tensors are taken from the first."""
    first = parts[0]
    arrays = {f.name: [getattr(fits, f.name) for fits in parts] for f in fields(first)}
    return replace(first, **{name: torch.cat(v) for name, v in arrays.items() if isinstance(v[0], Tensor)})


def check_exposure(exposure: Tensor | None, images: Tensor) -> None:
    """Raise ValueError unless there is no exposure map, or one of positive values for each image."""
    if exposure is None:
        return
    if exposure.shape != images.shape:
        raise ValueError(f"exposure has shape {tuple(exposure.shape)}, the images have {tuple(images.shape)}")
    if not (torch.isfinite(exposure) & (exposure > 0)).all():
        raise ValueError("exposure must be finite and positive; crop or fill pixels without exposure first")


def check_images(images: Images, fitter: Fitter) -> None:
    """Raise ValueError unless the images are finite and of the population's size."""
    n = fitter.population.field.n_pixels
    if images.ndim != 3:
        raise ValueError(f"images must have the shape (number, height, width), got {tuple(images.shape)}")
    if images.shape[-2:] != (n, n):
        raise ValueError(
            f"{fitter.population.name} has images of {n} x {n} pixels, got {images.shape[-2]} x {images.shape[-1]}"
        )
    if not torch.isfinite(images).all():
        raise ValueError("images must be finite; mask or replace NaN and infinite pixels first")


def unit_range(images: Images) -> tuple[Images, Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return images scaled to 0..1, their minimum and their range; thresholds then apply to every unit."""
    low = images.amin((1, 2))
    spread = (images.amax((1, 2)) - low).clamp_min(torch.finfo(images.dtype).tiny)
    return (images - low[:, None, None]) / spread[:, None, None], low, spread


def coarse_fit(images: Images, fitter: Fitter, exposure: Images | None = None) -> FitState:
    """Fit images scaled to 0..1 on the coarse detector, starting from the best matches in the bank."""
    small, noise = fitter.on_coarse(images, exposure)
    model = fitter.model(coarse=True)
    candidates = fitter.nearest(images)
    best_fit = minimise(model, small, noise, candidates[0], steps=_COARSE_STEPS, with_slopes=False)

    def retry(starts: FitParameters, largest_chi2: float) -> None:
        rows = torch.nonzero(~(best_fit.deviance <= largest_chi2 * small[0].numel()))[:, 0]
        if len(rows):
            retried = minimise(
                model, small[rows], noise.rows(rows), starts[rows], steps=_COARSE_STEPS, with_slopes=False
            )
            better = retried.deviance < best_fit.deviance[rows]
            best_fit.assign(rows[better], retried.rows(better))

    for candidate in candidates[1:]:
        retry(candidate, fitter.lens.retry_above)
    if not fitter.lens.centred:
        retry(model.mirrored(best_fit.parameters), _MIRROR_ABOVE)
    return best_fit


class SmoothFits(NamedTuple):
    """Fits of the smooth lens on the fine detector, the noise, and the relative exposure of each image or pixel.

    Attributes:
        state: The fits.
        noise: Noise of the images on the detector.
        exposure: Relative exposure of each pixel, known or estimated; None if it is 1 everywhere.
        relative_exposure: The estimated factor of the exposure of each image (b,).
    """

    state: FitState
    noise: Noise
    exposure: Images | None
    relative_exposure: Float[Tensor, " b"]


def fit_smooth(images: Images, fitter: Fitter, exposure: Images | None = None) -> SmoothFits:
    """Fit images scaled to 0..1 on the fine detector, and again those whose noise shows another exposure."""
    fit, noise = _fit_smooth(images, fitter, exposure)
    relative = torch.ones_like(fit.deviance)
    if noise.sky is None:
        return SmoothFits(fit, noise, exposure, relative)
    relative = relative_exposure(images, fitter.model().gain(fit.parameters), noise.sky, exposure)
    rows = torch.nonzero(relative != 1)[:, 0]
    if not len(rows):
        return SmoothFits(fit, noise, exposure, relative)
    known = torch.ones_like(images) if exposure is None else exposure
    exposure = known * relative[:, None, None]
    fits_of_rows, noise_of_rows = _fit_smooth(images[rows], fitter, exposure[rows])
    fit.assign(rows, fits_of_rows)
    extra = noise.extra.clone()
    extra[rows] = noise_of_rows.extra
    noise = replace(Noise.of(fitter.population, images, fitter.fine, exposure), extra=extra)
    return SmoothFits(fit, noise, exposure, relative)


def _fit_smooth(images: Images, fitter: Fitter, exposure: Images | None) -> tuple[FitState, Noise]:
    start = coarse_fit(images, fitter, exposure).parameters
    model = fitter.model()
    pixels, noise = fitter.on_fine(images, exposure)
    fit = minimise(model, pixels, noise, start, steps=_FINE_STEPS, reuse_slopes_below=_REUSE_SLOPES_BELOW)
    return fit, noise.with_extra(pixels, fit.model, model.gain(fit.parameters), quantisation_steps(images))


def _finish(images: Images, fitter: Fitter, exposure: Images | None) -> Iterator[MacroFit]:
    """Yield fits on all pixels, in the units of the images, for small batches."""
    scaled, low, spread = unit_range(images)
    fit, noise, exposure, relative = fit_smooth(scaled, fitter, exposure)
    size = batch_size_on(images.device, _ALL_PIXELS_BATCH_SIZE)
    for rows in torch.split(torch.arange(len(images), device=images.device), size):
        block_exposure = None if exposure is None else exposure[rows]
        fits = _on_all_pixels(scaled[rows], fit.parameters[rows], noise.extra[rows], fitter, block_exposure)
        yield replace(fits, relative_exposure=relative[rows]).in_units(low[rows], spread[rows])


def _on_all_pixels(
    images: Images, parameters: FitParameters, extra: Float[Tensor, " b"], fitter: Fitter, exposure: Images | None
) -> MacroFit:
    """Fit images scaled to 0..1 on all pixels, starting near the minimum."""
    model = Model(fitter.lens, fitter.full)
    all_pixels = replace(Noise.of(fitter.population, images, fitter.full, exposure), extra=extra)
    fit = minimise(
        model,
        images,
        all_pixels,
        parameters,
        steps=_LAST_STEPS,
        skip_last_step=True,
        reuse_slopes_below=_REUSE_SLOPES_BELOW,
    )
    weight = all_pixels.weight(fit.model, model.gain(fit.parameters))
    residual = (images - fit.model) * weight.sqrt()
    p = len(fitter.lens.names)
    degrees_of_freedom = residual[0].numel() - fit.parameters.shape[1]
    return MacroFit(
        names=tuple(fitter.lens.names),
        parameters=fit.parameters[:, :p],
        covariance=torch.linalg.pinv(fit.curvature.nan_to_num(), hermitian=True)[:, :p, :p].to(images.dtype),
        scale=fit.parameters[:, p].exp(),
        offset=fit.parameters[:, p + 1],
        model=fit.model,
        residual=residual,
        reduced_chi2=(residual**2).sum((1, 2)) / degrees_of_freedom,
        converged=fit.predicted_reduction < CONVERGED,
        relative_exposure=torch.ones_like(fit.deviance),
    )
