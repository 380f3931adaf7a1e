"""Checks of fits: the reasons not to trust a class, in words.

A class is supported if the fit of its hypothesis (smooth lens, line, points) describes the image: chi2 within its
scatter, no residual that the score tests of `misfit` attribute to something else, parameters within their bounds. The
limits lie above the values of nearly all images of common-test-i, per hypothesis (decision 15);
`experiments/confidence.yaml` measures what they flag. Limits for points are wider, because three points describe 25
subhaloes incompletely.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from darklens.fit.features import FitFeatures
from darklens.fit.point_fit import N_POINTS
from darklens.fit.smooth import LARGEST_CENTRE, SMALLEST_THETA_E
from darklens.fit.summary import FAILED, fit_succeeded
from darklens.populations.population import Population
from darklens.populations.substructure_models import LineMass, NoSubstructure

Hypothesis = Literal["smooth", "line", "points"]


class _Limits(NamedTuple):
    """Largest values in a fit that describes its image.

    Attributes:
        chi2_excess: Deviance above its expectation, in units of its standard deviation.
        psf: Delta chi2 of a PSF of another width; the others likewise.
        lens_shape: Of another slope, ellipticity, or multipoles.
        sky_slope: Of a sloped sky.
        lens_light: Of light about the centre of the lens.
        pixel: Residual of a pixel, standard deviations.
        spot: Residual of 3 x 3 pixels, standard deviations.
        rival: Delta chi2 by which the fit of another hypothesis is better.
    """

    chi2_excess: float
    psf: float
    lens_shape: float
    sky_slope: float
    lens_light: float
    pixel: float
    spot: float
    rival: float


_LIMITS: dict[Hypothesis, _Limits] = {
    "smooth": _Limits(5, 15, 30, 20, 20, 6, 6.5, 80),
    "line": _Limits(6, 15, 30, 20, 20, 6, 8.5, 60),
    "points": _Limits(18, 60, 350, 35, 90, 9, 14.5, 250),
}
_RIVALS: dict[Hypothesis, str] = {"line": "one line", "points": f"{N_POINTS} points"}
_LARGEST_SHARE = 0.8  # of delta chi2 of the perturbers, that a smooth lens with another effect may reach
_NOISE_DEFICIT = 5.0  # standard deviations of the deviance below its expectation, with excess noise in the sky
_AT_BOUND = 0.01  # arcsec, distance from a bound
_SUSPICIOUS = 0.6  # of the limit of a score test
# Of delta chi2 of the points, that of a line. In a lens of another shape, points may describe a line better than the
# line does; of right classes, one in seven exceeds this share (decision 27).
_SUSPICIOUS_LINE = 0.85
_NUISANCES = ("psf", "lens_shape", "lens_light")  # effects that fits with more parameters describe
_EFFECTS = {
    "psf": "a PSF of another width",
    "lens_shape": "an elliptical lens, another slope or multipoles",
    "sky_slope": "a sloped sky",
    "lens_light": "light of the lens galaxy, or its imperfect subtraction",
}


def hypothesis_of(population: Population, name: str) -> Hypothesis:
    """Return the hypothesis that represents a class of a population."""
    spec = population.classes.get(name)
    if isinstance(spec, NoSubstructure):
        return "smooth"
    return "line" if isinstance(spec, LineMass) else "points"


def delta_chi2_of(hypothesis: Hypothesis, value: Mapping[str, float]) -> float:
    """Return the gain in chi2 of a hypothesis over the smooth lens, from `FitFeatures.columns` of one image."""
    if hypothesis == "smooth":
        return 0.0
    return value["delta_chi2_line" if hypothesis == "line" else f"delta_chi2_points_{N_POINTS}"]


def doubts(features: FitFeatures, hypotheses: Sequence[Hypothesis]) -> list[tuple[str, ...]]:
    """Return for each image the reasons not to trust that a hypothesis describes it; none for a good fit.

    Args:
        features: Fits of b images.
        hypotheses: Hypothesis of the predicted class of each image.
    """
    columns = {name: column.tolist() for name, column in features.columns().items()}
    succeeded = fit_succeeded(features).tolist()
    return [
        _doubts({name: column[i] for name, column in columns.items()}, hypothesis) if succeeded[i] else (FAILED,)
        for i, hypothesis in enumerate(hypotheses)
    ]


def suspicions(features: FitFeatures, hypotheses: Sequence[Hypothesis]) -> list[tuple[str, ...]]:
    """Return for each image the reasons to fit PSF, ellipticity and lens light too.

    They are score tests near their limits, and points that lower chi2 hardly more than one line.

    Args:
        features: Fits of b images.
        hypotheses: Hypothesis of the predicted class of each image.
    """
    columns = {name: column.tolist() for name, column in features.columns().items()}
    return [
        _suspicions({name: column[i] for name, column in columns.items()}, hypothesis)
        for i, hypothesis in enumerate(hypotheses)
    ]


def _suspicions(value: dict[str, float], hypothesis: Hypothesis) -> tuple[str, ...]:
    reasons = [
        f"the residuals suggest {_EFFECTS[group]}"
        for group in _NUISANCES
        if value[f"misfit_{group}_{hypothesis}"] > _SUSPICIOUS * getattr(_LIMITS[hypothesis], group)
    ]
    if hypothesis == "points":
        line, points = (delta_chi2_of(each, value) for each in ("line", "points"))
        if line > _SUSPICIOUS_LINE * points:
            reasons.append(f"one line lowers chi2 by {line:.0f}, {N_POINTS} points by {points:.0f}")
    return tuple(reasons)


def _doubts(value: dict[str, float], hypothesis: Hypothesis) -> tuple[str, ...]:
    limits, reasons = _LIMITS[hypothesis], []
    delta_chi2 = delta_chi2_of(hypothesis, value)
    n_pixels, deviance = value["n_pixels_fitted"], value["deviance"] - delta_chi2
    excess = (deviance - n_pixels) / (2 * n_pixels) ** 0.5
    if excess > limits.chi2_excess:
        reasons.append(f"chi2 is {excess:.0f} standard deviations above its expectation")
    if hypothesis != "smooth" and not value["perturbers_fitted"]:
        reasons.append("no line and no point mass rises above the noise")
    for rival, words in _RIVALS.items():
        if (advantage := delta_chi2_of(rival, value) - delta_chi2) > limits.rival:
            reasons.append(f"{words} would fit the image better, by a delta chi2 of {advantage:.0f}")
    if excess < -_NOISE_DEFICIT and value["extra_variance"] > 0:
        reasons.append("the noise of the sky is not that of the image")
    if not value["converged"]:
        reasons.append("the fit of the smooth lens did not converge")
    if max(abs(value["centre_x"]), abs(value["centre_y"])) > LARGEST_CENTRE - _AT_BOUND:
        reasons.append(f"the lens is more than {LARGEST_CENTRE:g} arcsec from the centre")
    if value["theta_E"] < SMALLEST_THETA_E + _AT_BOUND:
        reasons.append("the Einstein radius is at its lower bound")
    for group, effect in _EFFECTS.items():
        if value[f"misfit_{group}_{hypothesis}"] > getattr(limits, group):
            reasons.append(f"the residuals suggest {effect}")
        elif hypothesis != "smooth" and value[f"misfit_{group}_smooth"] > _LARGEST_SHARE * delta_chi2:
            reasons.append(f"{effect} may explain the image without substructure")
    if value[f"misfit_pixel_{hypothesis}"] > limits.pixel:
        reasons.append(
            f"a pixel is {value[f'misfit_pixel_{hypothesis}']:.0f} standard deviations from the model "
            "(cosmic ray, dead or saturated pixel)"
        )
    if (spot := value[f"misfit_spot_{hypothesis}"]) > limits.spot:
        x, y = (value[f"misfit_spot_{axis}_{hypothesis}"] for axis in "xy")
        reasons.append(
            f"there is a residual of {spot:.0f} standard deviations at ({x:.2f}, {y:.2f}) arcsec from the centre of "
            "the field"
        )
    return tuple(reasons)
