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
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.devices import require_device
from darklens.errors import ConfigError
from darklens.fit.fit_result import FitResult, OtherSolution, almost_as_good, are_same, result_of
from darklens.fit.scene_solver import Data, Solver, State, data_of, detector_of
from darklens.fit.scene_starts import draw_starts, main_lens
from darklens.scene.observation import Observation
from darklens.scene.scene import Scene

_COARSE_ARCSEC, _COARSE_SIDE = 0.11, 72  # maximum size of a coarse pixel, target number along a side
_CORES = (0.1, 0.03, 0.01, 0.0)  # of light profiles with a cusp, in sampling distances, one after the other
_ROUNDS = ((5, 6), (10, 3), (40, 1))  # steps of the coarse fits, and number of fits continued after them
_GOOD, _HOPELESS = 1.5, 10.0  # deviance per pixel of a good fit, and of a fit that ends if there is a good one
_RADII = (0.25, 0.5, 1.0, 2.0, 4.0)  # of profiles without light, in units of their start
_FINE_STEPS, _CORE_STEPS = 60, 20  # at full resolution, with the first core and with each of the others
_NOISE_ROUNDS = 2  # fits with the photon noise of the model of the one before
_NO_WORSE = 4.0  # difference in deviance at which a smaller core is preferred
_ATTEMPTS = 2  # sets of starts, if the best fit of the first is poor


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
