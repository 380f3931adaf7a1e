"""Fit a scene to an observation: `fit(observation, scene)`.

1. Starts at different Einstein radii are drawn (`scene_starts`).
2. Levenberg-Marquardt fits of the image in larger pixels begin there. After a few steps only the best are continued.
3. The best of these fits is continued on the full-resolution image. If it does not describe the image, all is repeated
   once with other starts.
4. If a background and an exposure are given in place of a noise map, the best fit is repeated with the photon noise of
   its model.

Sersic profiles have a small core in these fits, which then shrinks to zero in three stages. The result is the last
stage that is not worse than those before.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.devices import require_device
from darklens.errors import ConfigError
from darklens.files import write_bytes
from darklens.fit import scene_export, scene_figure
from darklens.fit.scene_solver import Data, Solver, State, data_of, detector_of
from darklens.fit.scene_starts import draw_starts, main_lens
from darklens.fit.source_plane import focus
from darklens.scene.observation import Observation
from darklens.scene.scene import Scene

_COARSE_ARCSEC, _COARSE_SIDE = 0.11, 72  # maximum size of a coarse pixel, target number along a side
_CORES = (0.1, 0.03, 0.01, 0.0)  # of light profiles with a cusp, in sampling distances, one after the other
_ROUNDS = ((5, 6), (10, 3), (40, 1))  # steps of the coarse fits, and number of fits continued after them
_DIFFERENT = 0.03  # difference in ln theta_E of fits that are not the same
_GOOD, _HOPELESS = 1.5, 10.0  # deviance per pixel of a good fit, and of a fit that ends if there is a good one
_RADII = (0.25, 0.5, 1.0, 2.0, 4.0)  # of profiles without light, in units of their start
_FINE_STEPS, _CORE_STEPS = 60, 20  # at full resolution, with the first core and with each of the others
_NOISE_ROUNDS = 2  # fits with the photon noise of the model of the one before
_NO_WORSE = 4.0  # difference in deviance at which a smaller core is preferred
POOR, _POOR_SIGMA = 1.15, 5.0  # chi2 per pixel, and its excess in standard deviations, of a poor fit
_CLOSE = 25.0  # excess of the deviance of another solution; or, relative to the deviance, of good and of poor fits:
_CLOSE_RELATIVE, _CLOSE_IF_POOR = 0.02, 0.1
LARGEST_FOCUS = 0.7  # size of the source relative to its images, for a source grid; lenses have 0.1 to 0.5
_ATTEMPTS = 2  # sets of starts, if the best fit of the first is poor
_FAINTEST = 100.0  # reduction of chi2 by the model below which the image may be noise alone
_TOO_GOOD = 0.1  # chi2 per pixel below which the noise map is wrong, or the image has no noise


@dataclass(frozen=True)
class OtherSolution:
    """A solution of a fit at another Einstein radius that describes the image almost as well.

    Attributes:
        theta_E: Einstein radius of the main lens, arcsec.
        excess: By how much `measure` exceeds that of the best solution.
        parameters: Its parameters by name, from a fit of the image in larger pixels or from a fit with a source grid.
        measure: What the solutions were compared by.
    """

    theta_E: float
    excess: float
    parameters: Mapping[str, float] = field(repr=False)
    measure: Literal["chi2", "-2 ln(evidence)"] = "chi2"

    def __str__(self) -> str:
        """Return the warning."""
        return f"theta_E = {self.theta_E:.3g} fits almost as well: its {self.measure} is {self.excess:.0f} higher"


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fit of one scene to one observation.

    Attributes:
        scene: The fitted scene.
        observation: The observation to which it was fitted.
        parameters: Best-fitting values by name.
        errors: Standard deviations by name, from the curvature of the deviance; NaN for parameters that the image does
            not determine.
        amplitudes: Linear amplitudes by name, in the unit of the image.
        model: Best-fitting noise-free image (rows, columns).
        chi2: Sum of squared residuals in units of the noise, over the fitted pixels.
        n_pixels: Number of fitted pixels.
        converged: Whether the predicted reduction of the deviance by an undamped step is below 0.1.
        at_bounds: Names of the parameters at a bound.
        steps: Number of model evaluations at full resolution.
        seconds: Processor time.
        covariance: Covariance matrix of the parameters, in the order of `scene.names`; NaN as for `errors`.
        effective_amplitudes: Number of amplitudes that the image determines, rather than their prior.
        alternatives: Solutions at other Einstein radii that describe the image almost as well (`almost_as_good`).
    """

    scene: Scene = field(repr=False)
    observation: Observation = field(repr=False)
    parameters: dict[str, float]
    errors: dict[str, float]
    amplitudes: dict[str, float]
    model: Float[np.ndarray, "rows columns"] = field(repr=False)
    chi2: float
    n_pixels: int
    converged: bool
    at_bounds: tuple[str, ...]
    steps: int
    seconds: float
    covariance: Float[np.ndarray, "p p"] = field(repr=False)
    effective_amplitudes: float
    alternatives: tuple[OtherSolution, ...] = ()

    def __str__(self) -> str:
        """Return one line for each parameter, then chi2 per pixel and the warnings."""
        lines = [f"{name} = {value:.6g} +- {self.errors[name]:.2g}" for name, value in self.parameters.items()]
        lines += [f"{name} = {value:.6g}" for name, value in self.listed_amplitudes.items()]
        lines.append(f"chi2 per pixel = {self.chi2_per_pixel:.4g} of {self.n_pixels} pixels")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    @property
    def listed_amplitudes(self) -> dict[str, float]:
        """The amplitudes without those of a source grid, which are many."""
        names = [name for name, p in self.scene.profiles.items() if p is self.scene.source_grid]
        return {name: v for name, v in self.amplitudes.items() if name.rpartition(".")[0] not in names}

    @property
    def chi2_per_pixel(self) -> float:
        """Reduced chi2: chi2 per degree of freedom, close to 1 if the model and the noise map are correct."""
        return self.chi2 / self._freedom

    @property
    def chi2_excess(self) -> float:
        """(chi2 - n) / sqrt(2 n) for n degrees of freedom: the excess of chi2 in standard deviations."""
        return (self.chi2 - self._freedom) / math.sqrt(2 * self._freedom)

    @property
    def _freedom(self) -> float:
        return max(self.n_pixels - len(self.parameters) - self.effective_amplitudes, 1.0)

    @property
    def deviance(self) -> float:
        """chi2 plus the penalty of the priors."""
        internal = self.scene.internal(self.scene.pack(self.parameters))[0]
        mean, inverse_variance = self.scene.prior(internal)
        penalty = float((inverse_variance * (internal - mean) ** 2).sum())
        if (prior := self.scene.amplitude_prior) is not None:
            amplitudes = torch.tensor([self.amplitudes[name] for name in self.scene.amplitude_names]).double()
            penalty += float(amplitudes @ (prior @ amplitudes))
        return self.chi2 + penalty

    @property
    def is_poor(self) -> bool:
        """Whether the model does not describe the image: chi2 is far above its expectation."""
        return self.chi2_per_pixel > POOR and self.chi2_excess > _POOR_SIGMA

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the fit, one phrase each."""
        lens = f"{main_lens(self.scene)}."
        warnings = [] if self.converged else ["not converged"]
        if self.is_poor:
            warnings.append(f"chi2 per pixel {self.chi2_per_pixel:.2f}: the model does not describe the image")
        if self.chi2_per_pixel < _TOO_GOOD:
            warnings.append(f"chi2 per pixel {self.chi2_per_pixel:.2g}: the noise map exceeds the noise of the image")
        if float((self.observation.weights * self.observation.image**2).sum()) - self.chi2 < _FAINTEST:
            warnings.append("the image has no significant light")
        undetermined = [name for name, error in self.errors.items() if math.isnan(error)]
        for words, names in (("at a bound", self.at_bounds), ("not determined by the image", undetermined)):
            if names := [name for name in names if name.startswith((lens, "shear."))]:
                warnings.append(f"{words}: {', '.join(names)}")
        if focus(self) > LARGEST_FOCUS:
            warnings.append("the source is nearly as large as its images: the grid describes them without a lens")
        return (*warnings, *map(str, self.alternatives))

    @cached_property
    def residual(self) -> Float[np.ndarray, "rows columns"]:
        """(image - model) / noise; zero for excluded pixels."""
        return np.asarray((self.observation.image - self.model) * np.sqrt(self.observation.weights))

    @property
    def theta_E(self) -> float:
        """Einstein radius of the main lens, arcsec: the radius of the circle with the area of its critical ellipse."""
        return self.scene.values_of(main_lens(self.scene), self.parameters)["theta_E"]

    def with_alternatives(self, solutions: Iterable[OtherSolution]) -> "FitResult":
        """Return the fit with those alternatives that are almost as good, the first for each Einstein radius."""
        chosen: list[OtherSolution] = []
        for solution in solutions:
            radii = [self.theta_E, *(known.theta_E for known in chosen)]
            is_new = not any(are_same(solution.theta_E, theta_E) for theta_E in radii)
            if is_new and almost_as_good(solution.excess, self.deviance, self.n_pixels):
                chosen.append(solution)
        return replace(self, alternatives=tuple(chosen))

    def scaled(self, factor: float) -> "FitResult":
        """Return the fit of the observation multiplied by a factor."""
        if factor == 1:
            return self
        return replace(
            self,
            scene=self.scene.scaled(factor),
            observation=self.observation.scaled(factor),
            amplitudes={name: value * factor for name, value in self.amplitudes.items()},
            model=self.model * factor,
        )

    def plot(self, path: Path | str) -> None:
        """Write a PNG of data, model, residual in units of the noise, and source plane."""
        write_bytes(Path(path), scene_figure.draw(self))

    def to_lenstronomy(self) -> dict[str, Any]:
        """Return model lists and keyword arguments of lenstronomy; see `scene_export.to_lenstronomy`."""
        return scene_export.to_lenstronomy(self)

    def to_coolest(
        self, path: Path | str | None = None, *, z_lens: float | None = None, z_source: float | None = None
    ) -> dict[str, Any]:
        """Return the content of a COOLEST template and, with a path, write it as JSON; see `scene_export`."""
        if path is None:
            return scene_export.to_coolest(self, z_lens=z_lens, z_source=z_source)
        return scene_export.write_coolest(self, Path(path), z_lens=z_lens, z_source=z_source)


def fit(
    observation: Observation,
    scene: Scene,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    compiled: bool = False,
) -> FitResult:
    """Fit a scene to an observation.

    Args:
        observation: Image, noise map, mask and PSF.
        scene: Model to fit, with the starts, bounds and priors of its parameters.
        seed: Seed of the random starts.
        device: Device that computes the fit, such as "cuda".
        compiled: Whether to compile the scene, for fits of many images on the CPU (`darklens.scene.compiled`).

    Returns:
        The fit with the lowest deviance. Check its `warnings` before you use it.

    Raises:
        ConfigError: If there is no such device, the scene has no main lens, or `compiled` is combined with a device
            other than the CPU or needs a C++ compiler that is missing.
    """
    if compiled and torch.device(device).type != "cpu":
        raise ConfigError(f"A compiled fit runs on the CPU, not on {device}; leave out compiled=True or the device.")
    started, device = time.process_time(), require_device(device)
    scaled, generator = observation.scaled(1 / observation.unit), torch.Generator().manual_seed(seed)
    results = [_fit(scaled, scene, generator, device, compiled)]
    while results[-1].is_poor and len(results) < _ATTEMPTS:
        results.append(_fit(scaled, scene, generator, device, compiled))
    best = _with_noise_of_model(_best_of(results), device, compiled)
    seconds = time.process_time() - started
    fitted = best.scaled(observation.unit)
    return replace(fitted, observation=observation.with_noise_of(fitted.model), seconds=seconds)


def _best_of(results: list[FitResult]) -> FitResult:
    """Return the fit with the lowest chi2; others are among its alternatives if they are almost as good."""
    best, *others = sorted(results, key=lambda result: result.chi2)
    solutions = [OtherSolution(other.theta_E, other.deviance - best.deviance, other.parameters) for other in others]
    return best.with_alternatives([*best.alternatives, *solutions])


def _with_noise_of_model(result: FitResult, device: torch.device, compiled: bool) -> FitResult:
    """Return the fit with the photon noise of its model, where no noise map was given."""
    if result.observation.photon_noise is None:
        return result
    solver = Solver(result.scene, detector_of(result.observation, result.scene), compiled=compiled)
    for _ in range(_NOISE_ROUNDS):
        observation = result.observation.with_noise_of(result.model)
        start = result.scene.internal(result.scene.pack(result.parameters)).float().to(device)
        state = solver.minimise(start, data_of(observation, device), steps=_CORE_STEPS)
        fitted = result_of(solver, state, observation, time.process_time())
        result = replace(fitted, alternatives=result.alternatives)
    return result


def _fit(
    observation: Observation, scene: Scene, generator: torch.Generator, device: torch.device, compiled: bool
) -> FitResult:
    """Return the best fit from one set of starts."""
    started = time.process_time()
    softened = [scene.softened(core) for core in cores_of(scene, observation)]
    binned = coarse(observation)
    solver, data = Solver(softened[0], binned.detector(), compiled=compiled), data_of(binned, device)
    starts = draw_starts(solver, binned, generator, device)
    for steps, kept in _ROUNDS:
        state = solver.minimise(starts, data.repeated(len(starts)), steps=steps)
        rows = _distinct(softened[0], state, data)
        starts = state.internal[rows[:kept]]
    alternatives = _alternatives(softened[0], state, rows, int((data.weights > 0).sum()))
    starts = _revived(solver, starts, data)
    detector, data = observation.detector(), data_of(observation, device)
    best: tuple[Solver, State] | None = None
    for k, model in enumerate(softened):
        fine = Solver(model, detector, compiled=compiled)
        state = fine.minimise(starts, data, steps=_CORE_STEPS if k else _FINE_STEPS)
        starts = state.internal
        if best is None or float(state.deviance) < float(best[1].deviance) + _NO_WORSE:
            best = fine, state
    assert best is not None
    return replace(result_of(*best, observation, started), alternatives=alternatives)


def cores_of(scene: Scene, observation: Observation) -> list[float]:
    """Return the cores of light profiles with a cusp, arcsec, that a fit uses one after the other."""
    oversampling = observation.psf.oversampling if observation.psf else 1
    return [core * observation.pixel_scale / oversampling for core in (_CORES if scene.has_cusps else _CORES[:1])]


def coarse(observation: Observation) -> Observation:
    """Return the observation in larger pixels, with one sample for each pixel."""
    by_scale = int(_COARSE_ARCSEC / observation.pixel_scale)
    by_size = -(-max(observation.image.shape) // _COARSE_SIDE)
    side = int(max(1, min(by_scale, by_size)))
    return replace(observation.binned(side), psf=observation.psf.binned(side) if observation.psf else None)


def _revived(solver: Solver, best: Float[Tensor, "1 p"], data: Data) -> Float[Tensor, "1 p"]:
    """Return a better fit in which Sersic profiles without light have other radii, if there is one.

    The parameters of a profile whose amplitude is zero do not change in a fit.
    """
    scene = solver.scene
    before = solver.state(best, data)
    amplitudes = dict(zip(scene.amplitude_names, before.amplitudes[0].tolist(), strict=True))
    dark = [n for n in scene.profiles if f"{n}.R_e" in scene.names and amplitudes.get(f"{n}.amplitude") == 0]
    if not dark:
        return best
    starts = best.repeat(len(_RADII), 1)
    for name in dark:
        column = scene.names.index(f"{name}.R_e")
        starts[:, column] = math.log(scene.free[column].start) + torch.tensor(_RADII).log()
    after = solver.minimise(starts, data.repeated(len(starts)), steps=_ROUNDS[-1][0])
    lowest = after.deviance.argmin()
    return after.internal[lowest][None] if after.deviance[lowest] < before.deviance[0] else best


def _alternatives(scene: Scene, state: State, rows: list[int], n_pixels: int) -> tuple[OtherSolution, ...]:
    """Return those of several fits that are almost as good as the first of `rows`."""
    name = f"{main_lens(scene)}.theta_E"
    if name not in scene.names:
        return ()
    deviance, solutions = state.deviance.tolist(), scene.external(state.internal).tolist()
    excess = {row: deviance[row] - deviance[rows[0]] for row in rows[1:]}
    close = [row for row in excess if almost_as_good(excess[row], deviance[rows[0]], n_pixels)]
    parameters = {row: dict(zip(scene.names, solutions[row], strict=True)) for row in close}
    return tuple(OtherSolution(parameters[row][name], excess[row], parameters[row]) for row in close)


def almost_as_good(excess: float, lowest: float, n_pixels: int) -> bool:
    """Return whether a solution is almost as good as the best, from its excess over the lowest deviance.

    Where no solution describes the image, a larger excess is allowed, because the model then determines it.
    """
    relative = _CLOSE_IF_POOR if lowest > POOR * n_pixels else _CLOSE_RELATIVE
    return excess < max(_CLOSE, relative * lowest)


def are_same(theta_E: float, other: float) -> bool:
    """Return whether two Einstein radii count as one solution."""
    return abs(math.log(theta_E / other)) <= _DIFFERENT


def _distinct(scene: Scene, state: State, data: Data) -> list[int]:
    """Return the rows of fits with different Einstein radii, by increasing deviance."""
    name = f"{main_lens(scene)}.theta_E"
    order = state.deviance.argsort().tolist()
    per_pixel = (state.deviance / (data.weights > 0).sum()).tolist()
    if per_pixel[order[0]] < _GOOD:
        order = [row for row in order if per_pixel[row] < _HOPELESS]
    if name not in scene.names:
        return order
    theta_E = scene.external(state.internal)[:, scene.names.index(name)].tolist()
    chosen: list[int] = []
    for row in order:
        if not any(are_same(theta_E[row], theta_E[other]) for other in chosen):
            chosen.append(row)
    return chosen


def result_of(solver: Solver, state: State, observation: Observation, started: float) -> FitResult:
    """Return the first fit of a state at full resolution; `started` is the processor time at its start."""
    scene = solver.scene
    internal = state.internal[0]
    values = scene.external(state.internal)[0].tolist()
    scales = torch.tensor([v if p.log else 1.0 for v, p in zip(values, scene.free, strict=True)], dtype=torch.float64)
    covariance = solver.covariance(state)[0].double().cpu() * scales * scales[:, None]
    undetermined = ~(covariance.diagonal() > 0)
    covariance[undetermined], covariance[:, undetermined] = torch.nan, torch.nan
    errors = covariance.diagonal().sqrt().tolist()
    low, high = scene.bounds(internal)
    bound = ((internal <= low) | (internal >= high)).tolist()
    return FitResult(
        scene=scene,
        observation=observation,
        parameters=dict(zip(scene.names, values, strict=True)),
        errors=dict(zip(scene.names, errors, strict=True)),
        amplitudes=dict(zip(scene.amplitude_names, state.amplitudes[0].tolist(), strict=True)),
        model=state.model[0].double().cpu().numpy(),
        chi2=float(state.chi2[0]),
        n_pixels=int(observation.used.sum()),
        converged=bool(state.converged[0]),
        at_bounds=tuple(name for name, at in zip(scene.names, bound, strict=True) if at),
        steps=int(state.steps[0]),
        seconds=time.process_time() - started,
        covariance=covariance.numpy(),
        effective_amplitudes=solver.effective_amplitudes(state),
    )
