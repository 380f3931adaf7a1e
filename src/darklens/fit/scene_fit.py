"""Fit a scene to an observation: `fit(observation, scene)`.

The light of the lens is fitted first, alone. Lenses drawn around the scene's defaults are then compared with a coarse
image, with their amplitudes solved for; the best start Levenberg-Marquardt fits on the coarse image, and the best of
these end on the image's own pixels.
"""

import math
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.fit.scene_solver import Data, Solver, State
from darklens.scene.observation import Observation
from darklens.scene.profiles import Profile
from darklens.scene.scene import Scene

_COARSE_ARCSEC, _COARSE_SIDE = 0.11, 72  # coarse pixels are at most so large, and so many along a side
_DRAWS, _STARTS, _KEPT = 600, 8, 2
_FIRST_STEPS, _COARSE_STEPS, _FINE_STEPS = 10, 40, 80
_LENSES = ("epl", "sie", "sis")


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fit of one scene to one observation.

    Attributes:
        scene: What was fitted.
        observation: To what.
        parameters: Values by name.
        errors: Their standard deviations from the curvature of the deviance.
        amplitudes: Linear amplitudes by name, in the unit of the image.
        model: Best image (rows, columns), without noise.
        chi2: Sum of squared residuals over the noise, over the pixels that were fitted.
        n_pixels: Number of these.
        converged: Whether an undamped step is predicted to lower the deviance by less than 0.1.
        at_bounds: Parameters that ended at a bound.
        steps: Evaluations of the model on the image's own pixels.
        seconds: Processor time.
    """

    scene: Scene
    observation: Observation
    parameters: dict[str, float]
    errors: dict[str, float]
    amplitudes: dict[str, float]
    model: Float[np.ndarray, "rows columns"]
    chi2: float
    n_pixels: int
    converged: bool
    at_bounds: tuple[str, ...]
    steps: int
    seconds: float

    @property
    def chi2_per_pixel(self) -> float:
        """chi2 over the number of fitted pixels less the number of parameters: near 1 for a right model and noise."""
        return self.chi2 / max(self.n_pixels - len(self.parameters) - len(self.amplitudes), 1)

    @property
    def chi2_excess(self) -> float:
        """How far chi2 lies above its expectation, in standard deviations sqrt(2 n) of its scatter."""
        freedom = max(self.n_pixels - len(self.parameters) - len(self.amplitudes), 1)
        return (self.chi2 - freedom) / math.sqrt(2 * freedom)

    @cached_property
    def residual(self) -> Float[np.ndarray, "rows columns"]:
        """(image - model) / noise, zero where a pixel was left out."""
        return np.asarray((self.observation.image - self.model) * np.sqrt(self.observation.weights))

    @property
    def theta_E(self) -> float:
        """Effective Einstein radius of the main lens, arcsec: of the circle with the area of the critical ellipse."""
        return self.parameters[f"{main_lens(self.scene)}.theta_E"]


def fit(observation: Observation, scene: Scene, *, seed: int = 0) -> FitResult:
    """Fit a scene to an observation.

    Args:
        observation: Image, noise, mask and PSF.
        scene: What to fit; its defaults, bounds and priors say where.
        seed: Of the drawn starts.

    Returns:
        The fit with the lowest deviance. Look at `converged`, `chi2_excess` and `at_bounds` before using it.
    """
    started = time.process_time()
    side = _binning(observation)
    coarse = observation.binned(side)
    coarse_solver = Solver(scene, coarse.detector(supersample=coarse.psf.oversampling if coarse.psf else 1))
    fine_solver = Solver(scene, observation.detector())
    coarse_data, fine_data = _data(coarse), _data(observation)
    starts = _starts(scene, coarse, coarse_solver, coarse_data, torch.Generator().manual_seed(seed))
    first = coarse_solver.minimise(starts, _repeated(coarse_data, len(starts)), steps=_FIRST_STEPS)
    best = first.deviance.argsort()[:_KEPT]
    second = coarse_solver.minimise(first.internal[best], _repeated(coarse_data, len(best)), steps=_COARSE_STEPS)
    start = second.internal[second.deviance.argmin()][None]
    return _result(fine_solver, fine_solver.minimise(start, fine_data, steps=_FINE_STEPS), observation, started)


def main_lens(scene: Scene) -> str:
    """Return the name of the component whose Einstein radius is the scene's: the first isothermal or power-law lens."""
    return next(name for name, profile in scene.profiles.items() if profile.kind in _LENSES)


def _binning(observation: Observation) -> int:
    by_scale = int(_COARSE_ARCSEC / observation.pixel_scale)
    by_size = -(-max(observation.image.shape) // _COARSE_SIDE)
    return int(max(1, min(by_scale, by_size)))


def _data(observation: Observation) -> Data:
    arrays = (observation.image, observation.weights)
    return Data(*(torch.as_tensor(np.ascontiguousarray(v), dtype=torch.float32)[None] for v in arrays))


def _repeated(data: Data, n: int) -> Data:
    return Data(data.images.expand(n, -1, -1), data.weights.expand(n, -1, -1))


def _starts(
    scene: Scene, observation: Observation, solver: Solver, data: Data, generator: torch.Generator
) -> Float[Tensor, "s p"]:
    """Return internal parameters of the drawn lenses whose images are nearest to the observed one."""
    columns = {name: torch.full((_DRAWS,), p.start) for name, p in zip(scene.names, scene.free, strict=True)}
    for name, value in _lens_light(scene, observation).items():
        columns[name] = torch.full((_DRAWS,), value)
    lens = main_lens(scene)
    reach = min(observation.image.shape) * observation.pixel_scale / 2
    for name, p in zip(scene.names, scene.free, strict=True):
        component, _, symbol = name.partition(".")
        normal = torch.randn(_DRAWS, generator=generator)
        if name == f"{lens}.theta_E":
            smallest, largest = max(p.low, 2 * observation.pixel_scale), min(p.high, 0.8 * reach)
            columns[name] = smallest + (largest - smallest) * torch.rand(_DRAWS, generator=generator)
        elif component.startswith("light") or (symbol in ("centre_x", "centre_y") and component == lens):
            continue
        elif component.startswith("source") and symbol in ("centre_x", "centre_y"):
            columns[name] = columns[name] + 0.2 * normal
        elif p.log:
            columns[name] = columns[name] * torch.exp(p.step * normal)
        else:
            columns[name] = columns[name] + p.step * normal
    drawn = scene.internal(scene.pack(columns)).float()
    low, high = scene.bounds(drawn)
    drawn = drawn.clamp(low, high)
    deviance = torch.cat([solver.deviance(part, _repeated(data, len(part))) for part in torch.split(drawn, 32)])
    return drawn[deviance.argsort()[:_STARTS]]


def _lens_light(scene: Scene, observation: Observation) -> dict[str, float]:
    """Return parameters of the lens light, fitted without lens and source."""
    profiles: list[Profile] = list(scene.lens_light.profiles)
    if not profiles:
        return {}
    alone = Scene([], [], scene.lens_light)
    solver = Solver(alone, observation.detector())
    state = solver.minimise(alone.internal(alone.start()).float(), _data(observation), steps=_COARSE_STEPS)
    values = alone.external(state.internal)[0].tolist()
    return dict(zip(alone.names, values, strict=True))


def _result(solver: Solver, state: State, observation: Observation, started: float) -> FitResult:
    scene = solver.scene
    internal = state.internal[0]
    values = scene.external(state.internal)[0].tolist()
    deviations = solver.covariance(state)[0].diagonal().clamp_min(0).sqrt().tolist()
    errors = [d * v if p.log else d for d, v, p in zip(deviations, values, scene.free, strict=True)]
    low, high = scene.bounds(internal)
    bound = ((internal <= low) | (internal >= high)).tolist()
    return FitResult(
        scene=scene,
        observation=observation,
        parameters=dict(zip(scene.names, values, strict=True)),
        errors=dict(zip(scene.names, errors, strict=True)),
        amplitudes=dict(zip(scene.amplitude_names, state.amplitudes[0].tolist(), strict=True)),
        model=state.model[0].numpy(),
        chi2=float(state.chi2[0]),
        n_pixels=int(observation.used.sum()),
        converged=bool(state.converged[0]),
        at_bounds=tuple(name for name, at in zip(scene.names, bound, strict=True) if at),
        steps=int(state.steps[0]),
        seconds=time.process_time() - started,
    )
