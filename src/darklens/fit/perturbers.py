"""Search for perturbers of a lens: dark haloes, point masses or line masses, one after the other.

1. A map of first-order gains: for each position the reduction of chi2 by a perturber there, marginalised over all
   parameters and amplitudes of the smooth scene (`gain_map`).
2. Joint fits of the scene and the perturber, with all parameters free, from the highest peaks of this map.
3. The difference in deviance between the smooth scene and the best of these fits is compared with a threshold for a
   stated rate of false alarms.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from darklens.errors import ConfigError
from darklens.files import write_bytes
from darklens.fit import search_figure
from darklens.fit.fit_result import POOR, FitResult, result_of
from darklens.fit.gain_map import REACH, GainMap, gain_map
from darklens.fit.perturber_profiles import (
    DEFAULT_THRESHOLD,
    REDSHIFTS,
    PerturberKind,
    PerturberProfile,
    Redshifts,
    profile_of,
)
from darklens.fit.scene_fit import coarse, cores_of, fit
from darklens.fit.scene_solver import Solver, data_of, detector_of
from darklens.scene.observation import Observation
from darklens.scene.profile import Free, MassProfile
from darklens.scene.scene import Scene

_PEAKS, _CONTINUED = 5, 2  # number of peaks, and of coarse fits that are continued at full resolution
_PEAK_STEPS, _COARSE_STEPS, _FINE_STEPS = 6, 20, 200
_GRID_PEAKS, _GRID_PEAK_STEPS = 3, 4  # with a source grid, whose steps take half a second
_WORSE = 2.0  # excess of the deviance of a failed joint fit: a perturber without mass would have the same deviance


@dataclass(frozen=True, eq=False)
class Perturber:
    """A perturber of the joint fit.

    Attributes:
        kind: Kind of the search.
        delta_chi2: Deviance of the scene without it minus that with it, all other parameters refitted.
        x: Position, arcsec.
        y: Position, arcsec.
        log10_mass: log10 of M200 (halo) or of the total mass, in M_sun.
        log10_mass_error: Standard deviation.
        parameters: All its parameters.
        errors: Their standard deviations.
        covariance: Covariance of log10_mass, x and y, marginalised over all other parameters.
    """

    kind: str
    delta_chi2: float
    x: float
    y: float
    log10_mass: float
    log10_mass_error: float
    parameters: dict[str, float]
    errors: dict[str, float]
    covariance: Float[np.ndarray, "3 3"] = field(repr=False)

    @property
    def x_error(self) -> float:
        """Standard deviation of x, arcsec."""
        return self.errors["centre_x"]

    @property
    def y_error(self) -> float:
        """Standard deviation of y, arcsec."""
        return self.errors["centre_y"]


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

    def plot(self, path: Path | str) -> None:
        """Write a PNG of the image, the residuals without and with perturbers, the gain and the detectable mass."""
        write_bytes(Path(path), search_figure.draw(self))


def scenes_of_search(scene: Scene, perturber: PerturberKind, redshifts: Redshifts) -> list[Scene]:
    """Return the scenes that a search for one perturber fits: without and with it."""
    masses = scene.mass.profiles, [*scene.mass.profiles, profile_of(perturber)(redshifts)]
    return [Scene(mass, scene.source, scene.lens_light) for mass in masses]


def find_perturbers(
    observation: Observation,
    scene: Scene,
    *,
    perturber: PerturberKind = "tnfw",
    n_max: int = 1,
    result: FitResult | None = None,
    threshold: float | None = None,
    redshifts: Redshifts = REDSHIFTS,
    seed: int = 0,
    compiled: bool = False,
) -> SearchResult:
    """Search for perturbers of a lens.

    Args:
        observation: Image, noise map, mask and PSF.
        scene: Smooth model; with a source grid, that of `result`.
        perturber: "tnfw" (truncated NFW halo), "tnfw_free" (with free concentration), "point" or "line".
        n_max: Maximum number of perturbers, found one after the other while each is above the threshold.
        result: Fit of `scene` to `observation`, if there is one.
        threshold: Threshold of delta chi2 for a detection, such as that of `false_alarm_threshold`; by default
            `DEFAULT_THRESHOLD`, which is not for source grids.
        redshifts: Redshifts, and the concentration of haloes.
        seed: Seed of the random starts of the fit.
        compiled: Whether to compile the scenes (`darklens.fit`).

    Returns:
        The perturbers, with the fits without and with them.

    Raises:
        ConfigError: If there is no such perturber, or the scene has a source grid and there is no result or threshold.
    """
    if scene.source_grid is not None:
        if result is None:
            raise ConfigError("A search with a source grid needs the fit with it, the result of `reconstruct_source`.")
        if threshold is None:
            raise ConfigError("A search with a source grid needs a threshold: the default is that of source profiles.")
    started = time.process_time()
    profile = profile_of(perturber)
    limit = DEFAULT_THRESHOLD[perturber] if threshold is None else threshold
    smooth = fit(observation, scene, seed=seed, compiled=compiled) if result is None else result
    unit = smooth.observation.unit
    smooth, exact = smooth.scaled(1 / unit), scene.scaled(1 / unit)
    gains = gain_map(smooth, perturber=perturber, redshifts=redshifts)
    current, detected = smooth, False
    perturbers: list[Perturber] = []
    for number in range(n_max):
        name = f"perturber{number + 1 if number else ''}"
        maps = gains if number == 0 else gain_map(current, perturber=perturber, redshifts=redshifts)
        joint = _joint_fit(current, profile, redshifts, name, maps, compiled)
        if joint is None:
            break
        without, exact = exact, _with(exact, joint.scene.mass.profiles[-1])
        joint, core = _sharpened(joint, exact, compiled)
        refitted = _refit(current, joint, current.scene if core is None else without.softened(core), compiled)
        item = _perturber(perturber, name, joint, refitted.deviance - joint.deviance)
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
    reasons = [*(current if detected else smooth).warnings]
    if detected and (bounds := [name for name in current.at_bounds if name.startswith("perturber")]):
        reasons.append(f"at a bound: {', '.join(bounds)}")
    if perturbers and perturbers[0].delta_chi2 < -_WORSE:
        reasons.append(f"the joint fit failed: its deviance is {-perturbers[0].delta_chi2:.0f} above the smooth fit's")
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
    result: FitResult, profile: type[PerturberProfile], redshifts: Redshifts, name: str, gains: GainMap, compiled: bool
) -> FitResult | None:
    """Return the best fit of the scene with one more perturber, from the peaks of a map; None if it has no peak."""
    is_slow = result.scene.source_grid is not None
    peaks = gains.peaks(_GRID_PEAKS if is_slow else _PEAKS)
    if not peaks:
        return None
    started = time.process_time()
    inside = np.isfinite(gains.gain)
    bounds = {}
    for symbol, axis, at in (("centre_x", 0, gains.x), ("centre_y", 1, gains.y)):
        near = at[inside.any(axis)]
        bounds[symbol] = Free(low=float(near.min()) - REACH, high=float(near.max()) + REACH)
    scene = result.scene
    joint = _with(scene, profile(redshifts, name=name, **bounds))
    values = dict(result.parameters) | {f"{name}.{k}": torch.tensor([p[k] for p in peaks]) for k in peaks[0]}
    binned = coarse(result.observation)
    solver, data = Solver(joint, detector_of(binned, joint), compiled=compiled), data_of(binned)
    starts = joint.internal(joint.pack(values)).float()
    rounds = ((_GRID_PEAK_STEPS, 1),) if is_slow else ((_PEAK_STEPS, _CONTINUED), (_COARSE_STEPS, 1))
    for steps, kept in rounds:
        state = solver.minimise(starts, data.repeated(len(starts)), steps=steps)
        starts = state.internal[state.deviance.argsort()[:kept]]
    fine = Solver(joint, detector_of(result.observation, joint), compiled=compiled)
    state = fine.minimise(starts, data_of(result.observation), steps=_FINE_STEPS)
    return result_of(fine, state, result.observation, started)


def _with(scene: Scene, perturber: MassProfile) -> Scene:
    return Scene([*scene.mass.profiles, perturber], scene.source, scene.lens_light)


def _sharpened(joint: FitResult, exact: Scene, compiled: bool) -> tuple[FitResult, float | None]:
    """Return a poor joint fit with smaller cores of the light profiles, if that is better, and the core.

    A smooth fit in a local minimum can prefer a core that its source does not have.

    Args:
        joint: Joint fit.
        exact: Its scene without cores.
        compiled: Whether to compile the scene.
    """
    best, chosen = joint, None
    if joint.chi2_per_pixel < POOR or not exact.has_cusps:
        return best, chosen
    detector, data = joint.observation.detector(), data_of(joint.observation)
    start = joint.scene.internal(joint.scene.pack(joint.parameters)).float()
    for core in cores_of(exact, joint.observation):
        started = time.process_time()
        solver = Solver(exact.softened(core), detector, compiled=compiled)
        state = solver.minimise(start, data, steps=_FINE_STEPS)
        start, result = state.internal, result_of(solver, state, joint.observation, started)
        if result.chi2 < best.chi2:
            best, chosen = result, core
    return best, chosen


def _refit(result: FitResult, joint: FitResult, scene: Scene, compiled: bool) -> FitResult:
    """Return the fit without the last perturber that starts from the joint fit, if it is better than `result`.

    Where the smooth fit was in a local minimum, the joint fit would otherwise seem to gain by the perturber. `scene` is
    that of `result`, with the cores of the joint fit.
    """
    started = time.process_time()
    solver = Solver(scene, detector_of(result.observation, scene), compiled=compiled)
    data = data_of(result.observation)
    values = {name: joint.parameters[name] for name in scene.names}
    state = solver.minimise(scene.internal(scene.pack(values)).float(), data, steps=_FINE_STEPS)
    other = result_of(solver, state, result.observation, started)
    return other if other.deviance < result.deviance else result


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
        errors={k.removeprefix(prefix): v for k, v in joint.errors.items() if k.startswith(prefix)},
        covariance=joint.covariance[np.ix_(rows, rows)],
    )
