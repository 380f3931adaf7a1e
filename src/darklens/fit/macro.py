"""Fit the smooth lens, whatever the image's scale: `fit_macro(images, population)`.

Each image is compared with a bank of smooth lenses drawn from the population; the nearest starts a damped Gauss-Newton
iteration on light sampled coarsely, which goes on in the light's own sampling and ends on the image's own pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.fit.fitter import Fitter, Images, fitter
from darklens.fit.levenberg import Fitted, minimise
from darklens.fit.model import Model, Unknown
from darklens.fit.noise import Noise, steps_of
from darklens.kernels.smooth_fit import load_for
from darklens.populations.population import Population
from darklens.simulate.backend import Backend

Result = TypeVar("Result", bound=Any)  # a dataclass of tensors

AT_ONCE = 16  # images of which all hypotheses are fitted; more do not fit a processor's cache
_SMOOTH_AT_ONCE, _WHOLE_AT_ONCE = 128, 16  # images of which the smooth lens is fitted; on all their pixels
_COARSE_STEPS, _FINE_STEPS, _LAST_STEPS = 10, 8, 6
_SHORT = 30.0  # of the deviance: a step that promises less is of some standard deviations
_POOR = 5.0  # deviance per block after the coarse steps: the start was in another valley
_DOUBTFUL = 1.25  # the same: the lens may be on the other side of the source, were it not held
CONVERGED = 1.0  # of the deviance, what a further step may still promise


@dataclass(frozen=True)
class MacroFit:
    """Fits of b images; all arrays are for the image as it was given, whatever its scale.

    Attributes:
        names: The p parameters (arcsec for positions and radii; `ln_` marks natural logarithms).
        parameters: Their values (b, p).
        covariance: Their covariance (b, p, p), scale and offset marginalised.
        scale: Image units per unit of the population's brightness (b,).
        offset: Image units where there is no light (b,).
        model: The smooth lens as it would look without noise (b, n, n).
        residual: (image - model) / noise (b, n, n), for a smooth lens white with variance 1.
        reduced_chi2: Sum of squared residuals per degree of freedom (b,).
        converged: Whether another step would lower the deviance by less than 1 (b,).
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

    def in_units(self, low: Float[Tensor, " b"], spread: Float[Tensor, " b"]) -> "MacroFit":
        """Return the fits for images that were low + spread * (the images that were fitted)."""
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
    backend: Backend = "eager",
    centred: bool = True,
) -> MacroFit:
    """Fit the smooth lens of a population to images in any linear scale: counts, rates, or scaled to 0..1.

    Args:
        images: Images on the population's detector; nothing is assumed of their zero and unit.
        population: Gives the family of lenses, the PSF and the noise; a name is looked up.
        exposure: Relative exposure of each pixel, where images are counts divided by it.
        backend: As for `fit_hypotheses`.
        centred: Whether the lens is held at the middle of the image; if not, its place is fitted, within 0.3 arcsec.

    Raises:
        ConfigError: If the population's light is not Sersic profiles.
        ValueError: If the images are not of the population's size, or not finite, or the exposure is not theirs.
    """
    fit_setup = fitter(population, backend, centred=centred)
    check_images(images, fit_setup)
    check_exposure(exposure, images)
    load_for(len(images))
    return joined(
        [
            part
            for block, block_exposure in batches(images, exposure, _SMOOTH_AT_ONCE)
            for part in _finish(block, fit_setup, block_exposure)
        ]
    )


def batches(
    images: Images, exposure: Images | None = None, at_once: int = AT_ONCE
) -> Iterator[tuple[Images, Images | None]]:
    """Yield so many images at a time, with their exposures."""
    blocks = torch.split(images.float(), at_once)
    exposures = [None] * len(blocks) if exposure is None else torch.split(exposure.float(), at_once)
    yield from zip(blocks, exposures, strict=True)


def joined(parts: Sequence[Result]) -> Result:
    """Return the results of several batches as one: tensors put end to end, all else as in the first."""
    first = parts[0]
    arrays = {f.name: [getattr(part, f.name) for part in parts] for f in fields(first)}
    return replace(first, **{name: torch.cat(v) for name, v in arrays.items() if isinstance(v[0], Tensor)})


def check_exposure(exposure: Tensor | None, images: Tensor) -> None:
    """Raise ValueError unless there is no exposure map, or one of positive values for each image."""
    if exposure is None:
        return
    if exposure.shape != images.shape:
        raise ValueError(f"exposure has shape {tuple(exposure.shape)}, the images have {tuple(images.shape)}")
    if not (torch.isfinite(exposure) & (exposure > 0)).all():
        raise ValueError("exposure must be finite and positive; crop or fill pixels without exposure first")


def check_images(images: Images, fit_setup: Fitter) -> None:
    """Raise ValueError unless the images are finite and of the population's size."""
    n = fit_setup.population.field.n_pixels
    if images.shape[-2:] != (n, n):
        raise ValueError(
            f"{fit_setup.population.name} has images of {n} x {n} pixels, got {images.shape[-2]} x {images.shape[-1]}"
        )
    if not torch.isfinite(images).all():
        raise ValueError("images must be finite; mask or replace NaN and infinite pixels first")


def unit_range(images: Images) -> tuple[Images, Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return images from 0 to 1, and the zero and unit they had: one set of thresholds then suits every scale."""
    low = images.amin((1, 2))
    spread = (images.amax((1, 2)) - low).clamp_min(torch.finfo(images.dtype).tiny)
    return (images - low[:, None, None]) / spread[:, None, None], low, spread


def coarse_fit(images: Images, fit_setup: Fitter, exposure: Images | None = None) -> Fitted:
    """Return the fit of a few images from 0 to 1 on the coarse detector, from the best of the bank's starts."""
    small, noise = fit_setup.on_coarse(images, exposure)
    model = fit_setup.model(coarse=True)
    candidates = fit_setup.nearest(images)
    best_fit = minimise(model, small, noise, candidates[0], steps=_COARSE_STEPS)

    def retry(starts: Unknown, worst: float) -> None:
        poor = torch.nonzero(~(best_fit.deviance <= worst * small[0].numel()))[:, 0]
        if len(poor):
            again = minimise(model, small[poor], noise.rows(poor), starts[poor], steps=_COARSE_STEPS)
            better = again.deviance < best_fit.deviance[poor]
            best_fit.put(poor[better], again.rows(better))

    for candidate in candidates[1:]:
        retry(candidate, _POOR)
    if not fit_setup.lens.centred:
        retry(model.mirrored(best_fit.unknown), _DOUBTFUL)
    return best_fit


def fit_smooth(images: Images, fit_setup: Fitter, exposure: Images | None = None) -> tuple[Fitted, Noise]:
    """Return the fit of a few images from 0 to 1 on the fine detector, and their noise there."""
    start = coarse_fit(images, fit_setup, exposure).unknown
    model = fit_setup.model()
    pixels, noise = fit_setup.on_fine(images, exposure)
    fitted = minimise(model, pixels, noise, start, steps=_FINE_STEPS, keep_slopes=_SHORT)
    return fitted, noise.with_extra(pixels, fitted.model, model.gain(fitted.unknown), steps_of(images))


def _finish(images: Images, fit_setup: Fitter, exposure: Images | None) -> Iterator[MacroFit]:
    """Yield the fits of a few images at a time, on all their pixels and in the units in which they were given."""
    scaled, low, spread = unit_range(images)
    fitted, noise = fit_smooth(scaled, fit_setup, exposure)
    for rows in torch.split(torch.arange(len(images), device=images.device), _WHOLE_AT_ONCE):
        block_exposure = None if exposure is None else exposure[rows]
        yield _on_all_pixels(scaled[rows], fitted.unknown[rows], noise.extra[rows], fit_setup, block_exposure).in_units(
            low[rows], spread[rows]
        )


def _on_all_pixels(
    images: Images, unknown: Unknown, extra: Float[Tensor, " b"], fit_setup: Fitter, exposure: Images | None
) -> MacroFit:
    """Return the fits of images from 0 to 1 from unknowns that are nearly right."""
    model = Model(fit_setup.lens, fit_setup.full, compiled=fit_setup.compiled)
    all_pixels = replace(Noise.of(fit_setup.population, images, fit_setup.full, exposure), extra=extra)
    fitted = minimise(model, images, all_pixels, unknown, steps=_LAST_STEPS, settle=True, keep_slopes=_SHORT)
    weight = all_pixels.weight(fitted.model, model.gain(fitted.unknown))
    residual = (images - fitted.model) * weight.sqrt()
    p = len(fit_setup.lens.names)
    freedom = residual[0].numel() - fitted.unknown.shape[1]
    return MacroFit(
        names=tuple(fit_setup.lens.names),
        parameters=fitted.unknown[:, :p],
        covariance=torch.linalg.pinv(fitted.curvature.nan_to_num(), hermitian=True)[:, :p, :p].to(images.dtype),
        scale=fitted.unknown[:, p].exp(),
        offset=fitted.unknown[:, p + 1],
        model=fitted.model,
        residual=residual,
        reduced_chi2=(residual**2).sum((1, 2)) / freedom,
        converged=fitted.predicted_reduction < CONVERGED,
    )
