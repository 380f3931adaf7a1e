"""Search for perturbers of a lens: dark haloes, point masses or line masses, one after the other.

1. A map of first-order gains: for each position the reduction of chi2 by a perturber there, marginalised over all
   parameters and amplitudes of the smooth scene (`gain_map`).
2. Joint fits of the scene and the perturber, with all parameters free, from the highest peaks of this map.
3. The difference in deviance between the smooth scene and the best of these fits is compared with a threshold for a
   stated rate of false alarms.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.errors import ConfigError
from darklens.fit.scene_fit import FitResult, coarse, fit, result_of
from darklens.fit.scene_solver import Solver, data_of
from darklens.physics.cosmology import nfw_angles, point_mass_theta_E
from darklens.physics.profiles import line, tnfw
from darklens.registry import unknown
from darklens.scene.compiled import CompiledScene
from darklens.scene.observation import Observation
from darklens.scene.profiles import Free, MassProfile, Parameter
from darklens.scene.scene import Scene

PerturberKind = Literal["tnfw", "point", "line"]

_SPACING = 0.1  # arcsec, of the positions of the map
_REACH = 0.3  # arcsec, of the map beyond the arcs
_FAINTEST = 1.0  # brightness of the arcs, in units of the noise of a pixel of the map
_SEPARATION = 0.3  # arcsec, of peaks
_PEAKS, _CONTINUED = 5, 2  # number of peaks, and of coarse fits that are continued at full resolution
_PEAK_STEPS, _COARSE_STEPS, _FINE_STEPS = 6, 20, 40
_BATCH = 64  # positions
_LIGHTEST, _HEAVIEST = 6.0, 11.5  # log10 of M_sun
_TRUNCATION = 20.0  # r_t / R_s
_DEFLECTION_DEGREE = 4  # of the polynomial for the logarithm of alpha_Rs
_HUBBLE = 0.7
_POINT_CORE = 0.01  # arcsec
_LINE_LENGTH, _LINE_ANGLES = 1.2, 6  # arcsec, number of angles in the map

_CENTRE = Parameter(unit="arcsec", low=-5.0, high=5.0, start=0.0, step=0.1)
_LOG_MASS = Parameter(unit="log10 M_sun", low=_LIGHTEST, high=_HEAVIEST, start=9.5, step=0.2)
_COMMON = {"log10_mass": _LOG_MASS, "centre_x": _CENTRE, "centre_y": _CENTRE}


@dataclass(frozen=True)
class Redshifts:
    """Redshifts of lens and source, and the concentration of haloes.

    Attributes:
        z_lens: Redshift of lens and perturbers.
        z_source: Redshift of the source.
        concentration: c200 of the haloes; None for the relation of Dutton & Maccio (2014) at z_lens, without scatter.
    """

    z_lens: float = 0.5
    z_source: float = 1.0
    concentration: float | None = None


_REDSHIFTS = Redshifts()


@cache
def _halo_laws(redshifts: Redshifts) -> tuple[tuple[float, float], tuple[float, ...]]:
    """Return coefficients of ln R_s and ln alpha_Rs as polynomials in log10 mass - 9: of degree 1, and of degree 4."""
    log10_mass = np.linspace(_LIGHTEST, _HEAVIEST, 56)
    mass = 10**log10_mass
    R_s, alpha = nfw_angles(
        mass=mass,
        concentration=concentration_of(mass, redshifts),
        z_lens=redshifts.z_lens,
        z_source=redshifts.z_source,
    )
    radius, deflection = (
        np.polynomial.polynomial.polyfit(log10_mass - 9, np.log(v), k)
        for v, k in ((R_s, 1), (alpha, _DEFLECTION_DEGREE))
    )
    return (float(radius[0]), float(radius[1])), tuple(float(c) for c in deflection)


def concentration_of(mass: Float[np.ndarray, " n"], redshifts: Redshifts) -> Float[np.ndarray, " n"]:
    """Return the concentration c200 of haloes of M200, in M_sun (Dutton & Maccio 2014, eq. 7, 10 and 11)."""
    if redshifts.concentration is not None:
        return np.full_like(mass, redshifts.concentration)
    z = redshifts.z_lens
    intercept = 0.520 + (0.905 - 0.520) * math.exp(-0.617 * z**1.21)
    return np.asarray(10 ** (intercept + (-0.101 + 0.026 * z) * (np.log10(mass) - 12 + math.log10(_HUBBLE))))


class _Perturber(MassProfile):
    """A perturber whose shape depends on its mass only.

    Args:
        redshifts: Redshifts, and the concentration of haloes.
    """

    shapes: ClassVar[tuple[dict[str, float], ...]]
    """Masses and shapes in the map of gains."""

    def __init__(self, redshifts: Redshifts = _REDSHIFTS, **options: Any) -> None:
        super().__init__(**options)
        self.redshifts = redshifts


class HaloPerturber(_Perturber):
    """NFW halo of mass M200, truncated at r_t = 20 R_s, with a concentration that depends on its mass."""

    kind = "halo_perturber"
    parameters: ClassVar[Any] = _COMMON
    shapes = ({"log10_mass": 9.0}, {"log10_mass": 10.0})

    @property
    def constants(self) -> Mapping[str, float]:
        """Coefficients of the scale radius and of its deflection (`_halo_laws`)."""
        laws = zip(("radius", "deflection"), _halo_laws(self.redshifts), strict=True)
        return {f"{name}{k}": c for name, coefficients in laws for k, c in enumerate(coefficients)}

    @property
    def law(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Function that returns the deflection."""
        return _halo


class PointPerturber(_Perturber):
    """Point mass, with a core of 0.01 arcsec, since the derivatives on a bare point are infinite."""

    kind = "point_perturber"
    parameters: ClassVar[Any] = _COMMON
    shapes = ({"log10_mass": 9.0},)

    @property
    def constants(self) -> Mapping[str, float]:
        """The squared Einstein radius of 1e9 M_sun, arcsec^2."""
        return {"unit": _unit_theta_E(self.redshifts) ** 2}

    @property
    def law(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Function that returns the deflection."""
        return _point


class LinePerturber(_Perturber):
    """Uniform line mass; `log10_mass` is its total mass."""

    kind = "line_perturber"
    parameters: ClassVar[Any] = _COMMON | {
        "length": Parameter(unit="arcsec", low=0.2, high=4.0, start=_LINE_LENGTH, step=0.3, log=True),
        "angle": Parameter(unit="radian", low=-10.0, high=10.0, start=0.0, step=0.5),
    }
    shapes = tuple(
        {"log10_mass": 9.0, "length": _LINE_LENGTH, "angle": k * math.pi / _LINE_ANGLES} for k in range(_LINE_ANGLES)
    )

    @property
    def constants(self) -> Mapping[str, float]:
        """The squared Einstein radius of 1e9 M_sun, arcsec^2."""
        return {"unit": _unit_theta_E(self.redshifts) ** 2}

    @property
    def law(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Function that returns the deflection."""
        return _line


def _halo(x: Tensor, y: Tensor, *, log10_mass: Tensor, **coefficients: Any) -> tuple[Tensor, Tensor]:
    at = log10_mass - 9.0
    log_alpha: Any = 0.0
    for k in range(_DEFLECTION_DEGREE, -1, -1):
        log_alpha = at * log_alpha + coefficients[f"deflection{k}"]
    R_s = torch.exp(at * coefficients["radius1"] + coefficients["radius0"])
    return tnfw.deflection(x, y, alpha_Rs=torch.exp(log_alpha), R_s=R_s, r_t=R_s * _TRUNCATION)


def _point(x: Tensor, y: Tensor, *, log10_mass: Tensor, unit: Any) -> tuple[Tensor, Tensor]:
    scale = torch.exp((log10_mass - 9.0) * math.log(10)) * unit / (x * x + y * y + _POINT_CORE**2)
    return scale * x, scale * y


def _line(
    x: Tensor, y: Tensor, *, log10_mass: Tensor, length: Tensor, angle: Tensor, unit: Any
) -> tuple[Tensor, Tensor]:
    mass = torch.exp((log10_mass - 9.0) * math.log(10)) * unit
    return line.deflection(x, y, mass=mass, length=length, angle=angle)


_PROFILES: dict[str, type[_Perturber]] = {"tnfw": HaloPerturber, "point": PointPerturber, "line": LinePerturber}
DEFAULT_THRESHOLD = {"tnfw": 15.0, "point": 15.0, "line": 20.0}
"""Thresholds of delta chi2 without simulations."""


@cache
def _unit_theta_E(redshifts: Redshifts) -> float:
    """Return the Einstein radius of a point of 1e9 M_sun, arcsec."""
    return point_mass_theta_E(mass=1e9, z_lens=redshifts.z_lens, z_source=redshifts.z_source)


@dataclass(frozen=True, eq=False)
class GainMap:
    """First-order gains by a perturber at each position of a grid; NaN far from the arcs.

    Attributes:
        x: Positions of the columns, arcsec.
        y: Positions of the rows, arcsec.
        gain: Reduction of chi2 by the best mass; zero where the best mass is negative.
        log10_mass: log10 of this mass, in M_sun; NaN where it is negative.
        log10_error: log10 of the standard deviation of the mass, in M_sun, for each of the k shapes.
        shape: Index of the shape with the largest gain.
        shapes: Shapes and reference masses.
    """

    x: Float[np.ndarray, " columns"] = field(repr=False)
    y: Float[np.ndarray, " rows"] = field(repr=False)
    gain: Float[np.ndarray, "rows columns"] = field(repr=False)
    log10_mass: Float[np.ndarray, "rows columns"] = field(repr=False)
    log10_error: Float[np.ndarray, "k rows columns"] = field(repr=False)
    shape: Float[np.ndarray, "rows columns"] = field(repr=False)
    shapes: tuple[dict[str, float], ...]

    def detectable(self, threshold: float) -> Float[np.ndarray, "rows columns"]:
        """Return log10 of the mass, in M_sun, whose expected gain is `threshold` at each position."""
        half = math.log10(threshold) / 2
        at = np.array([shape["log10_mass"] for shape in self.shapes])
        if len(set(at)) == 1:
            return np.asarray(self.log10_error.min(0) + half)
        # log10 of mass over error is interpolated linearly between the two reference masses.
        ratio = at[:, None, None] - self.log10_error
        slope = (ratio[1] - ratio[0]) / (at[1] - at[0])
        return np.asarray(at[0] + (half - ratio[0]) / slope)

    def peaks(self, n: int) -> list[dict[str, float]]:
        """Return parameters of a perturber at the highest n peaks that are at least 0.3 arcsec apart."""
        gain = np.nan_to_num(self.gain, nan=0.0)
        peaks: list[dict[str, float]] = []
        while len(peaks) < n and gain.max() > 0:
            row, column = np.unravel_index(gain.argmax(), gain.shape)
            x, y = float(self.x[column]), float(self.y[row])
            mass = min(max(float(self.log10_mass[row, column]), 7.5), 11.0)
            shape = self.shapes[int(self.shape[row, column])]
            peaks.append(shape | {"log10_mass": mass, "centre_x": x, "centre_y": y})
            gain[np.hypot(self.x - x, (self.y - y)[:, None]) < _SEPARATION] = 0.0
        return peaks


@torch.no_grad()
def gain_map(
    result: FitResult,
    *,
    perturber: PerturberKind = "tnfw",
    redshifts: Redshifts = _REDSHIFTS,
    spacing: float = _SPACING,
) -> GainMap:
    """Return by how much a perturber at each position would lower chi2, to first order in its mass.

    A perturber with deflection alpha changes the sampled brightness by minus the scalar product of alpha and the
    gradient of the source. This image, observed by the detector, is a further linear parameter of the fit: its gain is
    that of the residuals, marginalised over all parameters and amplitudes of the scene. Images of more than 72 pixels a
    side are binned.

    Args:
        result: Fit of the smooth scene.
        perturber: "tnfw", "point" or "line".
        redshifts: Redshifts, and the concentration of haloes.
        spacing: Minimum spacing of the positions, arcsec, in multiples of the sampling distance.

    Raises:
        ConfigError: If there is no such perturber.
    """
    profile = _profile(perturber)(redshifts)
    result = result.scaled(1 / result.observation.unit)
    scene, observation = result.scene, result.observation
    binned = coarse(replace(observation, image=np.where(observation.used, observation.image - result.model, 0.0)))
    detector, data = binned.detector(), data_of(binned)
    parameters = scene.pack(result.parameters).float()
    amplitudes = torch.tensor([[result.amplitudes[name] for name in scene.amplitude_names]], dtype=torch.float32)
    internal = scene.internal(parameters)
    x, y = detector.x.float(), detector.y.float()
    basis = detector.observe(scene.basis(parameters, x, y))[0]
    free = ~(torch.tensor(scene.positive) & (amplitudes[0] <= 0))
    slopes = detector.observe(scene.slopes(internal, amplitudes, detector))[0]
    root = data.weights.flatten().sqrt()
    planes = torch.cat([slopes, basis[free]]).flatten(1) * root
    residual = data.images.flatten() * root
    mean, prior = scene.prior(internal.double())
    away = torch.nn.functional.pad(prior * (internal[0].double() - mean), (0, len(planes) - len(prior)))
    curvature = (planes @ planes.T).double()
    curvature.diagonal()[: len(prior)] += prior
    unit = curvature.diagonal().clamp_min(1e-300).rsqrt()
    inverse = torch.linalg.pinv(curvature * unit[:, None] * unit, hermitian=True, rtol=1e-9) * unit[:, None] * unit
    rhs = (planes @ residual).double() - away
    gradient_x, gradient_y = scene.source_gradient(parameters, amplitudes, x, y)
    rows, columns, inside = _positions(scene, parameters, amplitudes, binned, x, y, spacing)
    at = torch.nonzero(inside)
    at_rows, at_columns = rows[at[:, 0]], columns[at[:, 1]]
    n_y, n_x = y.shape[-2], x.shape[-1]
    step = float(x[0, 1] - x[0, 0])
    offset_x = (torch.arange(2 * n_x - 1, dtype=torch.float32) - (n_x - 1)) * step
    offset_y = (torch.arange(2 * n_y - 1, dtype=torch.float32) - (n_y - 1)) * step
    log_gain, log_mass, log_error = [], [], []
    for shape in profile.shapes:
        values = {name: torch.tensor([[[value]]]) for name, value in shape.items()}
        alpha = profile.law(offset_x[None], offset_y[:, None], **values, **profile.constants)
        windows = [a[0].unfold(0, n_y, 1).unfold(1, n_x, 1) for a in alpha]
        scores, informations = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, len(at), _BATCH):
            chosen = slice(start, start + _BATCH)
            first, second = n_y - 1 - at_rows[chosen], n_x - 1 - at_columns[chosen]
            change = -(gradient_x * windows[0][first, second] + gradient_y * windows[1][first, second])
            plane = detector.observe(change).flatten(1) * root
            overlap = (plane @ planes.T).double()
            scores.append((plane @ residual).double() - overlap @ (inverse @ rhs))
            total = (plane * plane).sum(1).double()
            informations.append((total - ((overlap @ inverse) * overlap).sum(1)).maximum(1e-6 * total).clamp_min(1e-30))
        score, information = torch.cat(scores), torch.cat(informations)
        log_gain.append(score.clamp_min(0) ** 2 / information)
        log_mass.append((score.clamp_min(0) / information).log10() + shape["log10_mass"])
        log_error.append(shape["log10_mass"] - information.log10() / 2)
    gain, best = torch.stack(log_gain).max(0)
    mass = torch.stack(log_mass).gather(0, best[None])[0]

    def grid(values: Tensor) -> Float[np.ndarray, "rows columns"]:
        plane = np.full(tuple(inside.shape), np.nan)
        plane[inside.numpy()] = values.numpy()
        return plane

    return GainMap(
        x=x[0, columns].double().numpy(),
        y=y[rows, 0].double().numpy(),
        gain=grid(gain),
        log10_mass=grid(torch.where(gain > 0, mass, torch.nan)),
        log10_error=np.stack([grid(v) for v in log_error]),
        shape=grid(best.double()),
        shapes=profile.shapes,
    )


def _positions(
    scene: Scene,
    parameters: Tensor,
    amplitudes: Tensor,
    observation: Observation,
    x: Tensor,
    y: Tensor,
    spacing: float,
) -> tuple[Tensor, Tensor, Bool[Tensor, "rows columns"]]:
    """Return rows and columns of sampling positions, and which of these are in the image and near the arcs."""
    n = scene.source.n_amplitudes
    basis = scene.basis(parameters, x, y, lens_light=False)
    light = (basis * amplitudes[:, :n, None, None]).sum(1)
    noise = float(np.median(observation.noise_map[observation.used]))
    step = float(x[0, 1] - x[0, 0])
    reach = max(1, round(_REACH / step))
    bright = (light > _FAINTEST * noise).float()[None]
    near = torch.nn.functional.max_pool2d(bright, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    half_y, half_x = (n * observation.pixel_scale / 2 for n in observation.image.shape)
    near &= (x.abs() < half_x) & (y.abs() < half_y)
    stride = max(1, round(spacing / step))
    rows, columns = (torch.arange(((n - 1) % stride) // 2, n, stride) for n in near.shape)
    return rows, columns, near[rows][:, columns]


def _profile(perturber: str) -> type[_Perturber]:
    if perturber not in _PROFILES:
        raise ConfigError(unknown("perturber", perturber, list(_PROFILES)))
    return _PROFILES[perturber]


@dataclass(frozen=True, eq=False)
class Perturber:
    """A perturber of the joint fit.

    Attributes:
        kind: "tnfw", "point" or "line".
        delta_chi2: Deviance of the scene without it minus that with it, all other parameters refitted.
        x: Position, arcsec.
        y: Position, arcsec.
        log10_mass: log10 of M200 (halo) or of the total mass, in M_sun.
        log10_mass_error: Standard deviation.
        parameters: All its parameters.
        covariance: Covariance of log10_mass, x and y, marginalised over all other parameters.
    """

    kind: str
    delta_chi2: float
    x: float
    y: float
    log10_mass: float
    log10_mass_error: float
    parameters: dict[str, float]
    covariance: Float[np.ndarray, "3 3"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A search for perturbers in one observation.

    Attributes:
        detected: Whether the score exceeds the threshold. No detection is claimed if the best fit has warnings
            (`FitResult.warnings`).
        perturbers: Perturbers above the threshold, or the best one if there is none above.
        threshold: Threshold of delta chi2.
        smooth: Fit without perturbers.
        best: Fit with all perturbers.
        gains: First-order map of gains, from the smooth fit.
        message: Why a detection is not trusted; empty if the fit is good.
        seconds: Processor time, without the first smooth fit if it was passed.
    """

    detected: bool
    perturbers: tuple[Perturber, ...]
    threshold: float
    smooth: FitResult = field(repr=False)
    best: FitResult = field(repr=False)
    gains: GainMap = field(repr=False)
    message: str
    seconds: float

    @property
    def delta_chi2(self) -> float:
        """Difference in deviance of the first perturber; zero if there is none."""
        return self.perturbers[0].delta_chi2 if self.perturbers else 0.0

    @property
    def score(self) -> float:
        """Difference in deviance of the first perturber, divided by chi2 per pixel of the best fit if above one."""
        return self.delta_chi2 / max(1.0, self.best.chi2_per_pixel)


@dataclass(frozen=True, eq=False)
class SensitivityMap:
    """The mass of a perturber that would be detected at each position; NaN far from the arcs.

    Attributes:
        x: Positions of the columns, arcsec.
        y: Positions of the rows, arcsec.
        log10_mass: log10 of the mass, in M_sun, whose expected delta chi2 is the threshold.
        threshold: Threshold of delta chi2.
    """

    x: Float[np.ndarray, " columns"] = field(repr=False)
    y: Float[np.ndarray, " rows"] = field(repr=False)
    log10_mass: Float[np.ndarray, "rows columns"] = field(repr=False)
    threshold: float


def sensitivity_map(
    result: FitResult,
    *,
    perturber: PerturberKind = "tnfw",
    threshold: float | None = None,
    redshifts: Redshifts = _REDSHIFTS,
) -> SensitivityMap:
    """Return the mass that would be detected at each position, to first order in the mass.

    The expected delta chi2 of a perturber is the square of mass over error, marginalised over all parameters of the
    scene (`gain_map`). The first order overestimates delta chi2 of haloes whose deflection exceeds the PSF.

    Args:
        result: Fit of the smooth scene.
        perturber: "tnfw", "point" or "line".
        threshold: Threshold of delta chi2, by default `DEFAULT_THRESHOLD`.
        redshifts: Redshifts, and the concentration of haloes.

    Raises:
        ConfigError: If there is no such perturber.
    """
    gains = gain_map(result, perturber=perturber, redshifts=redshifts)
    limit = DEFAULT_THRESHOLD[perturber] if threshold is None else threshold
    return SensitivityMap(gains.x, gains.y, gains.detectable(limit), limit)


def compile_search(scene: Scene, perturber: PerturberKind, redshifts: Redshifts = _REDSHIFTS) -> None:
    """Compile the scenes of a search for one perturber, so that later processes find them in the cache."""
    for mass in (scene.mass.profiles, [*scene.mass.profiles, _profile(perturber)(redshifts)]):
        CompiledScene(Scene(mass, scene.source, scene.lens_light))


def find_perturbers(
    observation: Observation,
    scene: Scene,
    *,
    perturber: PerturberKind = "tnfw",
    n_max: int = 1,
    result: FitResult | None = None,
    threshold: float | None = None,
    redshifts: Redshifts = _REDSHIFTS,
    seed: int = 0,
    compiled: bool = False,
) -> SearchResult:
    """Search for perturbers of a lens.

    Args:
        observation: Image, noise map, mask and PSF.
        scene: Smooth model.
        perturber: "tnfw" (truncated NFW halo), "point" or "line".
        n_max: Maximum number of perturbers, found one after the other while each is above the threshold.
        result: Fit of `scene` to `observation`, if there is one.
        threshold: Threshold of delta chi2 for a detection, such as that of `false_alarm_threshold`; by default
            `DEFAULT_THRESHOLD`.
        redshifts: Redshifts, and the concentration of haloes.
        seed: Seed of the random starts of the fit.
        compiled: Whether to compile the scenes (`darklens.fit`).

    Returns:
        The perturbers, with the fits without and with them.

    Raises:
        ConfigError: If there is no such perturber.
    """
    started = time.process_time()
    profile = _profile(perturber)
    limit = DEFAULT_THRESHOLD[perturber] if threshold is None else threshold
    smooth = fit(observation, scene, seed=seed, compiled=compiled) if result is None else result
    unit = smooth.observation.unit
    smooth = smooth.scaled(1 / unit)
    gains = gain_map(smooth, perturber=perturber, redshifts=redshifts)
    current, detected = smooth, False
    perturbers: list[Perturber] = []
    for number in range(n_max):
        name = f"perturber{number + 1 if number else ''}"
        maps = gains if number == 0 else gain_map(current, perturber=perturber, redshifts=redshifts)
        joint = _joint_fit(current, profile, redshifts, name, maps, compiled)
        if joint is None:
            break
        refitted = _refit(current, joint, compiled)
        item = _perturber(perturber, name, joint, _deviance(refitted) - _deviance(joint))
        significant = item.delta_chi2 >= limit * max(1.0, joint.chi2_per_pixel)
        if number and not significant:
            break
        perturbers.append(item)
        smooth = refitted if number == 0 else smooth
        current = joint
        if not significant:
            break
        detected = True
    # Position and mass of a perturber without effect are not determined, so its fit need not converge.
    reasons = (current if detected else smooth).warnings
    return SearchResult(
        detected=detected and not reasons,
        perturbers=tuple(perturbers),
        threshold=limit,
        smooth=smooth.scaled(unit),
        best=current.scaled(unit),
        gains=gains,
        message=f"no detection is claimed: {'; '.join(reasons)}" if reasons else "",
        seconds=time.process_time() - started,
    )


def _joint_fit(
    result: FitResult, profile: type[_Perturber], redshifts: Redshifts, name: str, gains: GainMap, compiled: bool
) -> FitResult | None:
    """Return the best fit of the scene with one more perturber, from the peaks of a map; None if it has no peak."""
    peaks = gains.peaks(_PEAKS)
    if not peaks:
        return None
    started = time.process_time()
    inside = np.isfinite(gains.gain)
    bounds = {}
    for symbol, axis, at in (("centre_x", 0, gains.x), ("centre_y", 1, gains.y)):
        near = at[inside.any(axis)]
        bounds[symbol] = Free(low=float(near.min()) - _REACH, high=float(near.max()) + _REACH)
    scene = result.scene
    joint = Scene([*scene.mass.profiles, profile(redshifts, name=name, **bounds)], scene.source, scene.lens_light)
    values = dict(result.parameters) | {f"{name}.{k}": torch.tensor([p[k] for p in peaks]) for k in peaks[0]}
    binned = coarse(result.observation)
    solver, data = Solver(joint, binned.detector(), compiled=compiled), data_of(binned)
    starts = joint.internal(joint.pack(values)).float()
    for steps, kept in ((_PEAK_STEPS, _CONTINUED), (_COARSE_STEPS, 1)):
        state = solver.minimise(starts, data.repeated(len(starts)), steps=steps)
        starts = state.internal[state.deviance.argsort()[:kept]]
    fine = Solver(joint, result.observation.detector(), compiled=compiled)
    state = fine.minimise(starts, data_of(result.observation), steps=_FINE_STEPS)
    return result_of(fine, state, result.observation, started)


def _refit(result: FitResult, joint: FitResult, compiled: bool) -> FitResult:
    """Return the fit without the last perturber that starts from the joint fit, if it is better than `result`.

    Where the smooth fit was in a local minimum, the joint fit would otherwise seem to gain by the perturber.
    """
    started = time.process_time()
    scene = result.scene
    solver = Solver(scene, result.observation.detector(), compiled=compiled)
    data = data_of(result.observation)
    values = {name: joint.parameters[name] for name in scene.names}
    state = solver.minimise(scene.internal(scene.pack(values)).float(), data, steps=_FINE_STEPS)
    other = result_of(solver, state, result.observation, started)
    return other if _deviance(other) < _deviance(result) else result


def _deviance(result: FitResult) -> float:
    """Return chi2 plus the penalty of the priors."""
    internal = result.scene.internal(result.scene.pack(result.parameters))[0]
    mean, prior = result.scene.prior(internal)
    return result.chi2 + float((prior * (internal - mean) ** 2).sum())


def _perturber(kind: str, name: str, joint: FitResult, delta_chi2: float) -> Perturber:
    symbols = ("log10_mass", "centre_x", "centre_y")
    rows = [joint.scene.names.index(f"{name}.{symbol}") for symbol in symbols]
    mass, x, y = (joint.parameters[f"{name}.{symbol}"] for symbol in symbols)
    prefix = f"{name}."
    return Perturber(
        kind=kind,
        delta_chi2=delta_chi2,
        x=x,
        y=y,
        log10_mass=mass,
        log10_mass_error=joint.errors[f"{name}.log10_mass"],
        parameters={k.removeprefix(prefix): v for k, v in joint.parameters.items() if k.startswith(prefix)},
        covariance=joint.covariance[np.ix_(rows, rows)],
    )
