"""What else an image may hold: the smooth lens, one line mass, or some point masses, each fitted and compared.

Each hypothesis starts from the evidence maps of the smooth fit and ends with a joint fit of the lens and its masses.
All deviances of an image are of the same counts, so their differences are twice the logarithms of likelihood ratios.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.fit import masses
from darklens.fit.evidence import Templates, line_centres, shape_of, templates_of
from darklens.fit.fitter import Fitter, Images, fitter
from darklens.fit.levenberg import Fitted, minimise
from darklens.fit.macro import CONVERGED, batches, check_exposure, check_images, fit_smooth, joined, unit_range
from darklens.fit.model import Model, Unknown
from darklens.fit.noise import Gain, Maps, Noise
from darklens.kernels.smooth_fit import load_for
from darklens.populations.population import Population
from darklens.simulate.backend import Backend

N_POINTS = 3
_LINE_STARTS, _LINE_STARTS_FREE = 3, 6  # of lenses that are held, and of others, which have more valleys
_APART = 0.45  # arcsec between the centres of lines that are tried
# Blur of the line (arcsec) and most steps; the first of a line is on coarsely sampled light.
_COARSE_LINE = (0.1, 8)
_FINE_LINE = ((0.03, 5), (0.0, 3))
_LINE_AGAIN = ((0.1, 6), (0.03, 4), (0.0, 3))
# Gains by a point beside the line between which another line is tried: below, it is noise, and above, no line would do.
_UNEXPLAINED, _HOPELESS, _HOPELESS_FREE = 16.0, 400.0, 3000.0
_POINT_STEPS = 4
_MASS = {"line": (1e-3, 0.15), "point": (1e-4, 0.02)}  # arcsec^2, of a start


@dataclass(frozen=True)
class HypothesisFits:
    """Fits of b images; gains are in units of the deviance, masses in arcsec^2, places in arcsec.

    Maps are on the n x n blocks of pixels of `pixel_scale` arcsec around the optical axis.

    Attributes:
        names: The p parameters of the smooth lens.
        fixed: Those that the population never varies, and the place of a lens that is held.
        smooth: Those of the smooth lens alone (b, p).
        scale: Image units per unit of the population's brightness (b,).
        offset: Image units where there is no light (b,).
        extra_variance: Variance beyond photon counts, counts^2 per pixel (b,).
        converged: Whether the smooth fit settled (b,).
        n_pixels_fitted: The number of pixels of the fine detector that were compared (b,).
        deviance: Of the smooth lens (b,), expected to be `n_pixels_fitted` where it is the truth.
        delta_chi2_line: What one line lowers the deviance by (b,).
        line: mass, x, y, angle (radians from x towards y), length of that line (b, 5).
        delta_chi2_point_given_line: What one point mass beside the line would gain further (b,).
        delta_chi2_points: What one, two ... point masses lower the deviance by (b, k).
        points: mass, x, y of each, with all k of them there (b, k, 3).
        delta_chi2_point_given_points: What a further point mass would gain (b,).
        image: Image less offset over its largest value (b, n, n).
        residual: (image - smooth model) / noise (b, n, n).
        line_residual: With the line (b, n, n).
        point_residual: With all point masses (b, n, n).
        evidence: Gain by a point mass at each place, with the sign of the mass (b, n, n).
        line_evidence: The same beside the line (b, n, n).
        pixel_scale: Of the maps, arcsec.
    """

    names: tuple[str, ...]
    fixed: dict[str, float]
    smooth: Float[Tensor, "b p"]
    scale: Float[Tensor, " b"]
    offset: Float[Tensor, " b"]
    extra_variance: Float[Tensor, " b"]
    converged: Bool[Tensor, " b"]
    n_pixels_fitted: Float[Tensor, " b"]
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
    pixel_scale: float


@torch.no_grad()
def fit_hypotheses(
    images: Images,
    population: Population | str,
    *,
    exposure: Images | None = None,
    backend: Backend = "eager",
    centred: bool = True,
) -> HypothesisFits:
    """Fit the smooth lens alone, with a line mass, and with one to three point masses.

    Args:
        images: Images on the population's detector, in any linear scale.
        population: Gives the smooth lenses, the PSF and the noise; a name is looked up.
        exposure: Relative exposure of each pixel, where images are counts divided by it.
        backend: compiled takes two thirds of the time, after minutes of preparation (once a machine); last bits differ.
        centred: As for `fit_macro`.

    Raises:
        ConfigError: If the population's light is not Sersic profiles, or its source never moves.
        ValueError: If the images are not of the population's size, or not finite, or the exposure is not theirs.
    """
    fit_setup = fitter(population, backend, centred=centred)
    check_images(images, fit_setup)
    check_exposure(exposure, images)
    load_for(len(images))
    return joined([_fit_block(block, fit_setup, block_exposure) for block, block_exposure in batches(images, exposure)])


@dataclass(frozen=True)
class _Scene:
    """Some images, prepared for all hypotheses."""

    fit_setup: Fitter
    templates: Templates
    pixels: Maps
    noise: Noise
    coarse_pixels: Maps
    coarse_noise: Noise
    gain: Gain

    def weight(self, fitted: Fitted) -> Maps:
        return self.noise.weight(fitted.model, self.gain)

    def evidence(self, fitted: Fitted) -> tuple[Maps, Maps, Maps]:
        """Return gain, mass and weight of a point mass at each place beside what is fitted."""
        return self.templates.points(self.pixels - fitted.model, self.weight(fitted), fitted.slopes)

    def rows(self, rows: Tensor) -> "_Scene":
        return replace(
            self,
            pixels=self.pixels[rows],
            noise=self.noise.rows(rows),
            coarse_pixels=self.coarse_pixels[rows],
            coarse_noise=self.coarse_noise.rows(rows),
            gain=self.gain[rows],
        )

    def fit(self, model: Model, start: Unknown, steps: int) -> Fitted:
        return minimise(model, self.pixels, self.noise, start, steps=steps, gain=self.gain)


def _fit_block(images: Images, fit_setup: Fitter, exposure: Images | None) -> HypothesisFits:
    scaled, low, spread = unit_range(images)
    fitted, noise = fit_smooth(scaled, fit_setup, exposure)
    model, p = fit_setup.model(), len(fit_setup.lens.names)
    coarse_pixels, coarse_noise = fit_setup.on_coarse(scaled, exposure)
    gain, templates = model.gain(fitted.unknown), templates_of(fit_setup)
    scene = _Scene(fit_setup, templates, fit_setup.fine.combine(scaled), noise, coarse_pixels, coarse_noise, gain)
    deviance = noise.deviance(scene.pixels, fitted.model, gain)
    evidence, mass, free = scene.evidence(fitted)
    with_line, line_evidence = _line(scene, fitted)
    with_points, delta_chi2_points, delta_chi2_point_given_points = _points(scene, fitted, deviance, mass, free)
    line = with_line.unknown[:, p + 2 :].clone()
    line[:, 4] = line[:, 4].exp()
    light = scene.pixels - fitted.unknown[:, p + 1, None, None]

    def residual(of: Fitted) -> Maps:
        return templates.cut((scene.pixels - of.model) * scene.weight(of).sqrt())

    return HypothesisFits(
        names=tuple(fit_setup.lens.names),
        fixed={name: float(value) for name, value in fit_setup.lens.fixed.items()},
        smooth=fitted.unknown[:, :p],
        scale=fitted.unknown[:, p].exp() * spread,
        offset=fitted.unknown[:, p + 1] * spread + low,
        extra_variance=noise.extra,
        converged=fitted.predicted_reduction < CONVERGED,
        n_pixels_fitted=torch.full_like(deviance, scene.pixels[0].numel()),
        deviance=deviance,
        delta_chi2_line=deviance - with_line.deviance,
        line=line,
        delta_chi2_point_given_line=line_evidence.amax((1, 2)),
        delta_chi2_points=delta_chi2_points,
        points=with_points.unknown[:, p + 2 :].reshape(-1, N_POINTS, len(masses.POINT)),
        delta_chi2_point_given_points=delta_chi2_point_given_points,
        image=templates.cut(light / light.amax((1, 2), keepdim=True).clamp_min(1e-6)),
        residual=residual(fitted),
        line_residual=residual(with_line),
        point_residual=residual(with_points),
        evidence=evidence,
        line_evidence=line_evidence,
        pixel_scale=templates.grid.pixel_scale,
    )


def _line(scene: _Scene, fitted: Fitted) -> tuple[Fitted, Float[Tensor, "b n n"]]:
    """Return the fit with one line, and the gain by a point beside it at each place."""
    starts = _line_starts(scene, fitted)
    tried = _coarse_lines(scene, starts)
    order, all_rows = tried.deviance.argsort(0), torch.arange(len(fitted.unknown), device=starts.device)
    best_fit = _anneal(scene, tried.unknown[order[0], all_rows], _FINE_LINE)
    evidence, _, _ = scene.evidence(best_fit)
    unexplained = evidence.amax((1, 2))
    is_centred = scene.fit_setup.lens.centred
    poor = torch.nonzero((unexplained > _UNEXPLAINED) & (unexplained < (_HOPELESS if is_centred else _HOPELESS_FREE)))[
        :, 0
    ]
    if len(poor):
        if is_centred:
            start = starts[order[1, poor], poor]
        else:
            mirrored = scene.fit_setup.model("line").mirrored
            further = _coarse_lines(scene.rows(poor), torch.stack([mirrored(start) for start in starts[:, poor]]))
            start = further.unknown[further.deviance.argmin(0), torch.arange(len(poor), device=poor.device)]
        again = _anneal(scene.rows(poor), start, _LINE_AGAIN)
        better = again.deviance < best_fit.deviance[poor]
        if better.any():
            rows, again = poor[better], again.rows(better)
            best_fit.put(rows, again)
            evidence[rows], _, _ = scene.rows(rows).evidence(again)
    return best_fit, evidence


class _Tried(NamedTuple):
    """Where the fits of s starts of each of b images ended."""

    unknown: Float[Tensor, "s b q"]
    deviance: Float[Tensor, "s b"]


def _coarse_lines(scene: _Scene, starts: Float[Tensor, "s b q"]) -> _Tried:
    """Return where fits of a blurred line on coarsely sampled light end, a deviance that is no number as infinite."""
    blur, steps = _COARSE_LINE
    rows = torch.arange(starts.shape[1], device=starts.device).repeat(len(starts))
    tried = minimise(
        scene.fit_setup.model("line", blur=blur, coarse=True),
        scene.coarse_pixels[rows],
        scene.coarse_noise.rows(rows),
        starts.flatten(0, 1),
        steps=steps,
        gain=scene.gain[rows],
    )
    return _Tried(tried.unknown.reshape(starts.shape), tried.deviance.reshape(starts.shape[:2]).nan_to_num(torch.inf))


def _anneal(scene: _Scene, start: Unknown, schedule: tuple[tuple[float, int], ...]) -> Fitted:
    for blur, steps in schedule:
        fitted = scene.fit(scene.fit_setup.model("line", blur=blur), start, steps)
        start = fitted.unknown
    return fitted


def _line_starts(scene: _Scene, fitted: Fitted) -> Float[Tensor, "s b q"]:
    """Return the unknowns of the most promising lines, at places apart from each other, one after the other."""
    gain, mass = scene.templates.lines(scene.pixels - fitted.model, scene.weight(fitted), fitted.slopes)
    best, shape = gain.max(1)
    best, shape, mass = best.flatten(1).clone(), shape.flatten(1), mass.flatten(2)
    axis = torch.tensor(line_centres(), device=gain.device)
    x, y = axis.repeat(len(axis)), axis.repeat_interleave(len(axis))
    rows, starts = torch.arange(len(gain), device=gain.device), []
    for _ in range(_LINE_STARTS if scene.fit_setup.lens.centred else _LINE_STARTS_FREE):
        place = best.argmax(1)
        template = shape[rows, place]
        length, angle = shape_of(template)
        start_mass = mass[rows, template, place].clamp(*_MASS["line"])
        line = torch.stack([start_mass, x[place], y[place], angle, length.log()], 1)
        starts.append(torch.cat([fitted.unknown, line], 1))
        near = (x - x[place, None]) ** 2 + (y - y[place, None]) ** 2 < _APART**2
        best[near] = -torch.inf
    return torch.stack(starts)


def _points(
    scene: _Scene, fitted: Fitted, smooth: Float[Tensor, " b"], mass: Maps, free: Maps
) -> tuple[Fitted, Float[Tensor, "b k"], Float[Tensor, " b"]]:
    """Return the fit with all points, the gain by each number of them, and what one more would gain."""
    x, y = (v.flatten().to(mass) for v in scene.templates.grid.coordinates())
    all_rows = torch.arange(len(smooth), device=smooth.device)
    model = scene.fit_setup.model("points")
    current, gains, best = fitted, [], smooth
    for _ in range(N_POINTS):
        place = (mass * mass.abs() * free).flatten(1).argmax(1)
        start_mass = mass.flatten(1)[all_rows, place].clamp(*_MASS["point"])
        place_and_mass = torch.stack([start_mass, x[place], y[place]], 1)
        best_fit = scene.fit(model, torch.cat([current.unknown, place_and_mass], 1), _POINT_STEPS)
        # A mass that only harms is one of no mass.
        idle = torch.nonzero(~(best_fit.deviance < best))[:, 0]
        if len(idle):
            place_and_mass[:, 0] = 0
            start = torch.cat([current.unknown, place_and_mass], 1)[idle]
            best_fit.put(idle, scene.rows(idle).fit(model, start, 1))
        current, best = best_fit, best_fit.deviance
        gains.append(smooth - best)
        mass = scene.templates.repeated(scene.pixels - current.model, scene.weight(current), current.slopes, free)
    return current, torch.stack(gains, 1), (mass * mass.abs() * free).amax((1, 2))
