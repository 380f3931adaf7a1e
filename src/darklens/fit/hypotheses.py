"""Fits of three hypotheses to each image: a smooth lens, with one line mass, or with point masses.

The evidence maps of the smooth fit give the starting values of a joint fit of lens and perturbers. If they show no
perturber above the noise, perturbers are not fitted: their first-order estimates are the result. All deviances of an
image refer to the same counts, so their differences are twice the logarithms of likelihood ratios.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.data.contrast import contrast_problem
from darklens.fit.evidence import PointMaps, templates_of
from darklens.fit.fitter import Fitter, Images, fitter_of
from darklens.fit.macro import CONVERGED, batches, check_exposure, check_images, concatenate, fit_smooth, unit_range
from darklens.fit.noise import Maps
from darklens.fit.perturber_fits import PerturberFits, estimate_perturbers, fit_perturbers
from darklens.fit.prepared_images import PreparedImages
from darklens.kernels.smooth_fit import load_for
from darklens.populations.population import Population

# Largest first-order delta chi2 of a perturber at which perturbers are not fitted. Noise alone gives at most 21, a line
# at least 77 (250 lenses each of common-test-i).
_NOISE = 24.0


@dataclass(frozen=True)
class HypothesisFits(PerturberFits):
    """Fits of three hypotheses to b images; masses in arcsec^2 (theta_E^2), positions and lengths in arcsec.

    A fitted pixel is a block of detector pixels of `pixel_scale` arcsec. Where `perturbers_fitted` is false, the line
    and the first point mass are those of largest first-order delta chi2, other point masses are zero, and the maps and
    score tests of `PerturberFits` are those of the smooth fit.

    Attributes:
        names: Names of the p free parameters of the smooth lens.
        fixed: Values of the parameters that the population does not vary, and of a fixed centre.
        smooth: Parameters of the smooth lens, fitted without perturbers (b, p).
        scale: Image units per unit of the population's brightness (b,).
        offset: Image value where there is no light (b,).
        extra_variance: Variance in excess of photon noise, counts^2 per detector pixel (b,).
        converged: Whether the smooth fit converged (b,).
        n_pixels_fitted: Number of fitted pixels that are not masked (b,).
        perturbers_fitted: Whether any perturber is above the noise, so that line and point masses were fitted (b,).
        deviance: Deviance of the smooth lens (b,); its expectation for a smooth lens is `n_pixels_fitted`. Infinite
            for an image without contrast.
        image: (image - offset) / its maximum (b, n, n).
        residual: (image - smooth model) / sigma (b, n, n).
        evidence: Delta chi2 of a point mass at each position, with the sign of the mass (b, n, n).
        relative_exposure: Exposure in units of that of the population, as in `MacroFit` (b,).
        pixel_scale: Side of a fitted pixel, arcsec.
    """

    names: tuple[str, ...]
    fixed: dict[str, float]
    smooth: Float[Tensor, "b p"]
    scale: Float[Tensor, " b"]
    offset: Float[Tensor, " b"]
    extra_variance: Float[Tensor, " b"]
    converged: Bool[Tensor, " b"]
    n_pixels_fitted: Float[Tensor, " b"]
    perturbers_fitted: Bool[Tensor, " b"]
    deviance: Float[Tensor, " b"]
    image: Maps
    residual: Maps
    evidence: Maps
    relative_exposure: Float[Tensor, " b"]
    pixel_scale: float


@torch.no_grad()
def fit_hypotheses(
    images: Images,
    population: Population | str,
    *,
    exposure: Images | None = None,
    centred: bool = True,
) -> HypothesisFits:
    """Fit the smooth lens alone, with a line mass, and with one to three point masses.

    Args:
        images: Images on the population's detector (b, n, n), in any linear scale.
        population: Defines the smooth lens, the PSF and the noise; or its name.
        exposure: Relative exposure of each pixel, if images are counts divided by exposure.
        centred: As for `fit_macro`.

    Raises:
        ConfigError: If the light of the population is not Sersic profiles, or it does not vary the source position.
        ValueError: If the images are not of the population's size, or not finite, or the exposure is not theirs.
    """
    fitter = fitter_of(population, centred=centred, device=images.device)
    check_images(images, fitter)
    check_exposure(exposure, images)
    load_for(len(images))
    return concatenate(
        [_fit_block(block, fitter, block_exposure) for block, block_exposure in batches(images, exposure)]
    )


def _fit_block(images: Images, fitter: Fitter, exposure: Images | None) -> HypothesisFits:
    scaled, low, spread = unit_range(images)
    fit, noise, exposure, relative = fit_smooth(scaled, fitter, exposure)
    model, p = fitter.model(), len(fitter.lens.names)
    coarse_pixels, coarse_noise = fitter.on_coarse(scaled, exposure)
    gain, templates = model.gain(fit.parameters), templates_of(fitter)
    prepared = PreparedImages(fitter, templates, fitter.fine.combine(scaled), noise, coarse_pixels, coarse_noise, gain)
    deviance = noise.deviance(prepared.pixels, fit.model, gain)
    points, lines = templates.points_and_lines(prepared.pixels - fit.model, prepared.weight(fit), fit.slopes)
    perturbers, line_starts = estimate_perturbers(prepared, fit, points, lines)
    is_above = torch.maximum(perturbers.delta_chi2_line, perturbers.delta_chi2_points[:, 0]) > _NOISE
    above = torch.nonzero(is_above)[:, 0]
    if len(above):
        fitted = fit_perturbers(
            prepared.rows(above),
            fit.rows(above),
            deviance[above],
            line_starts[:, above],
            PointMaps(*(values[above] for values in points)),
            perturbers.misfit[above, :1],
        )
        perturbers.assign(above, fitted)
    light = prepared.pixels - fit.parameters[:, p + 1, None, None]
    return HypothesisFits(
        names=tuple(fitter.lens.names),
        fixed={name: float(value) for name, value in fitter.lens.fixed.items()},
        smooth=fit.parameters[:, :p],
        scale=fit.parameters[:, p].exp() * spread,
        offset=fit.parameters[:, p + 1] * spread + low,
        extra_variance=noise.extra,
        converged=fit.predicted_reduction < CONVERGED,
        n_pixels_fitted=noise.n_pixels(prepared.pixels),
        perturbers_fitted=is_above,
        deviance=torch.where(_has_contrast(images, fitter), deviance, torch.inf),
        image=templates.cut(light / light.amax((1, 2), keepdim=True).clamp_min(1e-6)),
        residual=prepared.residual(fit),
        evidence=points.delta_chi2,
        relative_exposure=relative,
        pixel_scale=templates.grid.pixel_scale,
        **vars(perturbers),
    )


def _has_contrast(images: Images, fitter: Fitter) -> Bool[Tensor, " b"]:
    """Return whether there is anything to fit in each image; every lens without light fits one without contrast."""
    scale = fitter.population.field.pixel_scale
    return torch.tensor([not contrast_problem(image, scale) for image in images.cpu().numpy()], device=images.device)
