"""Fits of three hypotheses to each image: a smooth lens, with one line mass, or with point masses.

The evidence maps of the smooth fit give the starting values of a joint fit of lens and perturbers. If they show no
perturber above the noise, perturbers are not fitted: their first-order estimates are the result. All deviances of an
image refer to the same counts, so their differences are twice the logarithms of likelihood ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.constants import constant
from darklens.data.contrast import contrast_problem
from darklens.fit import masses, misfit
from darklens.fit.evidence import LineMaps, PointMaps, Templates, line_centres, shape_of, templates_of
from darklens.fit.fitter import Fitter, Images, fitter_of
from darklens.fit.levenberg import FitState, minimise
from darklens.fit.macro import CONVERGED, batches, check_exposure, check_images, concatenate, fit_smooth, unit_range
from darklens.fit.model import FitParameters, Model
from darklens.fit.noise import Gain, Maps, Noise
from darklens.kernels.smooth_fit import load_for
from darklens.populations.population import Population

HYPOTHESES = ("smooth", "line", "points")
N_POINTS = 3
_LINE_STARTS, _LINE_STARTS_FREE_CENTRE = 3, 6  # with fixed centres, and with free ones, which have more local minima
_LINE_SEPARATION = 0.45  # arcsec, smallest distance between the centres of starting lines
# Blur of the line (arcsec) and largest number of steps; the first stage uses coarsely sampled light.
_COARSE_BLUR, _COARSE_STEPS = 0.1, (4, 4)
_CONTINUED_LINES = 3  # number of starts of a line that are continued after the first coarse steps
_FINE_LINE = ((0.03, 5), (0.0, 3))
_RETRY_LINE = ((0.1, 6), (0.03, 4), (0.0, 3))
# Range of delta_chi2_point_given_line in which other lines are tried: below, it is noise; above, no line fits.
_RETRY_ABOVE, _RETRY_BELOW, _RETRY_BELOW_FREE_CENTRE = 16.0, 400.0, 3000.0
_POINT_STEPS = 4
# Largest first-order delta chi2 of a perturber at which perturbers are not fitted. Noise alone gives at most 21, a line
# at least 77 (250 lenses each of common-test-i).
_NOISE = 24.0
_MASS = {"line": (1e-3, 0.15), "point": (1e-4, 0.02)}  # arcsec^2, range of starting masses


@dataclass(frozen=True)
class HypothesisFits:
    """Fits of three hypotheses to b images; masses in arcsec^2 (theta_E^2), positions and lengths in arcsec.

    A fitted pixel is a block of detector pixels of `pixel_scale` arcsec. Maps have n x n of them around the optical
    axis. delta chi2 is a reduction of the deviance. Where `perturbers_fitted` is false, the line and the first point
    mass are those of largest first-order delta chi2, other point masses are zero, and maps and score tests are those of
    the smooth fit.

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
        delta_chi2_line: Delta chi2 of one line mass (b,).
        line: Mass, x, y, angle (radians from x towards y) and length of the line (b, 5).
        delta_chi2_point_given_line: Delta chi2 of a point mass in addition to the line (b,).
        delta_chi2_points: Delta chi2 of one, two, ... k point masses (b, k).
        points: Mass, x and y of each of the k point masses, fitted jointly (b, k, 3).
        delta_chi2_point_given_points: Delta chi2 of one more point mass (b,).
        image: (image - offset) / its maximum (b, n, n).
        residual: (image - smooth model) / sigma (b, n, n).
        line_residual: The same for the model with the line (b, n, n).
        point_residual: The same for the model with k point masses (b, n, n).
        evidence: Delta chi2 of a point mass at each position, with the sign of the mass (b, n, n).
        line_evidence: The same in addition to the line (b, n, n).
        misfit: Score tests `misfit.NAMES` of the fits `HYPOTHESES` (b, 3, t).
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
    delta_chi2_line: Float[Tensor, " b"]
    line: Float[Tensor, "b 5"]
    delta_chi2_point_given_line: Float[Tensor, " b"]
    delta_chi2_points: Float[Tensor, "b k"]
    points: Float[Tensor, "b k 3"]
    delta_chi2_point_given_points: Float[Tensor, " b"]
    image: Maps
    residual: Maps
    line_residual: Maps
    point_residual: Maps
    evidence: Maps
    line_evidence: Maps
    misfit: Float[Tensor, "b 3 t"]
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


@dataclass(frozen=True)
class _PreparedImages:
    """A batch of images on both detectors, with their noise and the gain of the smooth fit."""

    fitter: Fitter
    templates: Templates
    pixels: Maps
    noise: Noise
    coarse_pixels: Maps
    coarse_noise: Noise
    gain: Gain

    @property
    def n_smooth(self) -> int:
        """Number of parameters before those of the perturbers."""
        return self.fitter.model().n_smooth

    def weight(self, fit: FitState) -> Maps:
        return self.noise.weight(fit.model, self.gain)

    def residual(self, fit: FitState) -> Maps:
        """Return (image - model) / sigma around the optical axis."""
        return self.templates.cut((self.pixels - fit.model) * self.weight(fit).sqrt())

    def evidence(self, fit: FitState) -> Maps:
        """Return delta chi2 of a point mass at each position, in addition to a fit."""
        return self.templates.points(self.pixels - fit.model, self.weight(fit), fit.slopes).delta_chi2

    def rows(self, rows: Tensor) -> "_PreparedImages":
        return replace(
            self,
            pixels=self.pixels[rows],
            noise=self.noise.rows(rows),
            coarse_pixels=self.coarse_pixels[rows],
            coarse_noise=self.coarse_noise.rows(rows),
            gain=self.gain[rows],
        )

    def fit(self, model: Model, start: FitParameters, steps: int, *, with_slopes: bool = True) -> FitState:
        return minimise(model, self.pixels, self.noise, start, steps=steps, gain=self.gain, with_slopes=with_slopes)


def _fit_block(images: Images, fitter: Fitter, exposure: Images | None) -> HypothesisFits:
    scaled, low, spread = unit_range(images)
    fit, noise, exposure, relative = fit_smooth(scaled, fitter, exposure)
    model, p = fitter.model(), len(fitter.lens.names)
    coarse_pixels, coarse_noise = fitter.on_coarse(scaled, exposure)
    gain, templates = model.gain(fit.parameters), templates_of(fitter)
    prepared = _PreparedImages(fitter, templates, fitter.fine.combine(scaled), noise, coarse_pixels, coarse_noise, gain)
    deviance = noise.deviance(prepared.pixels, fit.model, gain)
    points, lines = templates.points_and_lines(prepared.pixels - fit.model, prepared.weight(fit), fit.slopes)
    perturbers, line_starts = _first_order(prepared, fit, points, lines)
    is_above = torch.maximum(perturbers.delta_chi2_line, perturbers.delta_chi2_points[:, 0]) > _NOISE
    above = torch.nonzero(is_above)[:, 0]
    if len(above):
        fitted = _fitted(
            prepared.rows(above),
            fit.rows(above),
            deviance[above],
            line_starts[:, above],
            PointMaps(*(values[above] for values in points)),
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
        **perturbers._asdict(),
    )


class _Perturbers(NamedTuple):
    """Attributes of `HypothesisFits` that belong to fits of perturbers."""

    delta_chi2_line: Float[Tensor, " b"]
    line: Float[Tensor, "b 5"]
    delta_chi2_point_given_line: Float[Tensor, " b"]
    delta_chi2_points: Float[Tensor, "b k"]
    points: Float[Tensor, "b k 3"]
    delta_chi2_point_given_points: Float[Tensor, " b"]
    line_residual: Maps
    point_residual: Maps
    line_evidence: Maps
    misfit: Float[Tensor, "b 3 t"]

    def assign(self, rows: Tensor, other: "_Perturbers") -> None:
        """Replace a selection of the images."""
        for values, replacement in zip(self, other, strict=True):
            values[rows] = replacement


def _first_order(
    prepared: _PreparedImages, fit: FitState, points: PointMaps, lines: LineMaps
) -> tuple[_Perturbers, Float[Tensor, "s b q"]]:
    """Return the perturbers of largest first-order delta chi2, and starting values of lines."""
    starts, delta_chi2_line = _line_starts(prepared, fit, lines)
    evidence, index = points.delta_chi2.flatten(1).max(1)
    first_point = evidence.new_zeros(len(evidence), N_POINTS, len(masses.POINT))
    first_point[:, 0] = _point_starts(prepared, points.mass, index)
    residual = prepared.residual(fit)
    perturbers = _Perturbers(
        delta_chi2_line=delta_chi2_line,
        line=_lines_of(starts[0, :, prepared.n_smooth :]),
        delta_chi2_point_given_line=evidence.clone(),
        delta_chi2_points=evidence[:, None].repeat(1, N_POINTS),
        points=first_point,
        delta_chi2_point_given_points=evidence.clone(),
        line_residual=residual,
        point_residual=residual.clone(),
        line_evidence=points.delta_chi2.clone(),
        misfit=_misfit(prepared, fit, [fit]).repeat(1, len(HYPOTHESES), 1),
    )
    return perturbers, starts


def _fitted(
    prepared: _PreparedImages,
    fit: FitState,
    deviance: Float[Tensor, " b"],
    line_starts: Float[Tensor, "s b q"],
    points: PointMaps,
) -> _Perturbers:
    """Return fits of a line mass and of point masses.

    Args:
        prepared: The images.
        fit: The smooth fit.
        deviance: Its deviance.
        line_starts: Starting values of the line.
        points: Maps of a point mass in addition to the smooth fit.
    """
    with_line, line_evidence = _line(prepared, line_starts)
    with_points, delta_chi2_points, delta_chi2_point_given_points = _points(prepared, fit, deviance, points)
    return _Perturbers(
        delta_chi2_line=deviance - with_line.deviance,
        line=_lines_of(with_line.parameters[:, prepared.n_smooth :]),
        delta_chi2_point_given_line=line_evidence.amax((1, 2)),
        delta_chi2_points=delta_chi2_points,
        points=with_points.parameters[:, prepared.n_smooth :].reshape(-1, N_POINTS, len(masses.POINT)),
        delta_chi2_point_given_points=delta_chi2_point_given_points,
        line_residual=prepared.residual(with_line),
        point_residual=prepared.residual(with_points),
        line_evidence=line_evidence,
        misfit=_misfit(prepared, fit, [fit, with_line, with_points]),
    )


def _lines_of(parameters: Float[Tensor, "b 5"]) -> Float[Tensor, "b 5"]:
    """Return mass, x, y, angle and length of lines."""
    return torch.cat([parameters[:, :4], parameters[:, 4:].exp()], 1)


def _misfit(prepared: _PreparedImages, smooth: FitState, fits: Sequence[FitState]) -> Float[Tensor, "b h t"]:
    """Return the score tests of h fits."""
    lens, cut = prepared.fitter.lens, prepared.templates.cut
    value = {name: torch.full_like(smooth.deviance, float(fixed)) for name, fixed in lens.fixed.items()}
    value |= dict(zip(lens.names, smooth.parameters.unbind(1), strict=False))
    x, y = prepared.templates.grid.axes(dtype=smooth.model.dtype, device=smooth.model.device)
    templates = misfit.Templates.of(x, y, theta_E=value["theta_E"], centre=(value["centre_x"], value["centre_y"]))
    source = (lens.names.index("source_x"), lens.names.index("source_y"))
    parts = [
        (cut(prepared.pixels - fit.model), cut(fit.model), cut(prepared.weight(fit)), cut(fit.slopes)) for fit in fits
    ]
    return torch.stack([misfit.score_tests(templates, *part, source=source) for part in parts], 1)


def _has_contrast(images: Images, fitter: Fitter) -> Bool[Tensor, " b"]:
    """Return whether there is anything to fit in each image; every lens without light fits one without contrast."""
    scale = fitter.population.field.pixel_scale
    return torch.tensor([not contrast_problem(image, scale) for image in images.cpu().numpy()], device=images.device)


def _line(prepared: _PreparedImages, starts: Float[Tensor, "s b q"]) -> tuple[FitState, Maps]:
    """Return the fit with one line, and the evidence map of a point mass in addition to it."""
    coarse_fits = _coarse_lines(prepared, starts)
    best_fit = _anneal(prepared, coarse_fits.parameters[0], _FINE_LINE)
    evidence = prepared.evidence(best_fit)
    largest_evidence = evidence.amax((1, 2))
    is_centred = prepared.fitter.lens.centred
    retry_rows = torch.nonzero(
        (largest_evidence > _RETRY_ABOVE)
        & (largest_evidence < (_RETRY_BELOW if is_centred else _RETRY_BELOW_FREE_CENTRE))
    )[:, 0]
    if len(retry_rows):
        if is_centred:
            start = coarse_fits.starts[1, retry_rows]
        else:
            mirrored = prepared.fitter.model("line").mirrored
            mirrored_starts = torch.stack([mirrored(start) for start in starts[:, retry_rows]])
            start = _coarse_lines(prepared.rows(retry_rows), mirrored_starts).parameters[0]
        retried = _anneal(prepared.rows(retry_rows), start, _RETRY_LINE)
        better = retried.deviance < best_fit.deviance[retry_rows]
        if better.any():
            rows, retried = retry_rows[better], retried.rows(better)
            best_fit.assign(rows, retried)
            evidence[rows] = prepared.rows(rows).evidence(retried)
    return best_fit, evidence


class _LineFits(NamedTuple):
    """The results of fits from s starting values for each of b images."""

    starts: Float[Tensor, "s b q"]
    parameters: Float[Tensor, "s b q"]
    deviance: Float[Tensor, "s b"]

    def best(self, n: int) -> "_LineFits":
        """Return the n fits of smallest deviance of each image, best first."""
        order = self.deviance.argsort(0)[:n]
        rows = order[:, :, None].expand(-1, -1, self.starts.shape[2])
        return _LineFits(self.starts.gather(0, rows), self.parameters.gather(0, rows), self.deviance.gather(0, order))


def _coarse_lines(prepared: _PreparedImages, starts: Float[Tensor, "s b q"]) -> _LineFits:
    """Fit a blurred line to coarsely sampled light; only the best fits after the first steps are continued."""
    fits = _LineFits(starts, starts, starts.new_zeros(starts.shape[:2]))
    for steps in _COARSE_STEPS:
        fits = _coarse_steps(prepared, fits, steps).best(_CONTINUED_LINES)
    return fits


def _coarse_steps(prepared: _PreparedImages, fits: _LineFits, steps: int) -> _LineFits:
    """Continue fits; a NaN deviance becomes infinite."""
    n_starts, n_images, _ = fits.parameters.shape
    rows = torch.arange(n_images, device=fits.parameters.device).repeat(n_starts)
    state = minimise(
        prepared.fitter.model("line", blur=_COARSE_BLUR, coarse=True),
        prepared.coarse_pixels[rows],
        prepared.coarse_noise.rows(rows),
        fits.parameters.flatten(0, 1),
        steps=steps,
        gain=prepared.gain[rows],
        with_slopes=False,
    )
    deviance = state.deviance.reshape(n_starts, n_images).nan_to_num(torch.inf)
    return _LineFits(fits.starts, state.parameters.reshape(fits.parameters.shape), deviance)


def _anneal(prepared: _PreparedImages, start: FitParameters, schedule: tuple[tuple[float, int], ...]) -> FitState:
    *first, (last_blur, last_steps) = schedule
    for blur, steps in first:
        start = prepared.fit(prepared.fitter.model("line", blur=blur), start, steps, with_slopes=False).parameters
    return prepared.fit(prepared.fitter.model("line", blur=last_blur), start, last_steps)


def _line_starts(
    prepared: _PreparedImages, fit: FitState, lines: LineMaps
) -> tuple[Float[Tensor, "s b q"], Float[Tensor, " b"]]:
    """Return starting values and the largest delta chi2: the best lines, `_LINE_SEPARATION` apart, best first."""
    best, shape = lines.delta_chi2.max(1)
    best, shape, mass = best.flatten(1).clone(), shape.flatten(1), lines.mass.flatten(2)
    largest = best.amax(1)
    axis = constant(tuple(line_centres()), torch.float32, best.device)
    x, y = axis.repeat(len(axis)), axis.repeat_interleave(len(axis))
    rows, starts = torch.arange(len(best), device=best.device), []
    for _ in range(_LINE_STARTS if prepared.fitter.lens.centred else _LINE_STARTS_FREE_CENTRE):
        index = best.argmax(1)
        template = shape[rows, index]
        length, angle = shape_of(template)
        start_mass = mass[rows, template, index].clamp(*_MASS["line"])
        line = torch.stack([start_mass, x[index], y[index], angle, length.log()], 1)
        starts.append(torch.cat([fit.parameters, line], 1))
        nearby = (x - x[index, None]) ** 2 + (y - y[index, None]) ** 2 < _LINE_SEPARATION**2
        best[nearby] = -torch.inf
    return torch.stack(starts), largest


def _points(
    prepared: _PreparedImages, fit: FitState, smooth: Float[Tensor, " b"], points: PointMaps
) -> tuple[FitState, Float[Tensor, "b k"], Float[Tensor, " b"]]:
    """Return the fit with all point masses, delta chi2 for each number of them, and that of one more."""
    model, (_, mass, information) = prepared.fitter.model("points"), points
    current, delta_chi2, best = fit, [], smooth
    for _ in range(N_POINTS):
        point_start = _point_starts(prepared, mass, (mass * mass.abs() * information).flatten(1).argmax(1))
        best_fit = prepared.fit(model, torch.cat([current.parameters, point_start], 1), _POINT_STEPS)
        # A point mass that does not lower the deviance gets zero mass.
        rejected = torch.nonzero(~(best_fit.deviance < best))[:, 0]
        if len(rejected):
            point_start[:, 0] = 0
            start = torch.cat([current.parameters, point_start], 1)[rejected]
            best_fit.assign(rejected, prepared.rows(rejected).fit(model, start, 1))
        current, best = best_fit, best_fit.deviance
        delta_chi2.append(smooth - best)
        mass = prepared.templates.point_masses(
            prepared.pixels - current.model, prepared.weight(current), current.slopes, information
        )
    return current, torch.stack(delta_chi2, 1), (mass * mass.abs() * information).amax((1, 2))


def _point_starts(prepared: _PreparedImages, mass: Maps, index: Int[Tensor, " b"]) -> Float[Tensor, "b 3"]:
    """Return mass, x and y of a point mass in one pixel of each map."""
    x, y = (v.flatten() for v in prepared.templates.grid.coordinates(dtype=mass.dtype, device=mass.device))
    best_mass = mass.flatten(1).gather(1, index[:, None])[:, 0]
    return torch.stack([best_mass.clamp(*_MASS["point"]), x[index], y[index]], 1)
