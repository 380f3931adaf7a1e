"""Fit a scene to an observation: `fit(observation, scene)`.

1. The lens light is fitted without lens and source.
2. Lens and source parameters are drawn at random around the defaults of the scene. For each draw the linear amplitudes
   are solved for, and the deviance of a binned image is computed.
3. The best draws start Levenberg-Marquardt fits of the binned image.
4. The best of these fits is continued on the full-resolution image.
"""

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.files import atomic_path
from darklens.fit import scene_export, scene_figure
from darklens.fit.scene_solver import Data, Solver, State
from darklens.scene.observation import Observation
from darklens.scene.profiles import Profile
from darklens.scene.scene import Scene

_COARSE_ARCSEC, _COARSE_SIDE = 0.11, 72  # maximum size of a coarse pixel, target number along a side
_CORE = 0.1  # core of light profiles with a cusp, in sampling distances
_DRAWS, _STARTS, _CANDIDATES = 24_000, 12, 30  # masses, bins of theta_E, and masses whose deviance is computed in each
_ARC_PIXELS, _COMPACT = 100, 0.1  # traced back to the source plane; size in arcsec at which the source is compact
_ROUNDS = ((5, 6), (10, 3), (40, 1))  # steps of the coarse fits, and number of fits continued after them
_DIFFERENT = 0.03  # difference in ln theta_E of fits that are not the same
_LIGHT_STEPS, _LIGHT_ROUNDS = 15, 3  # of the fit of the lens light alone
_OUTLIER = 3.0  # residual in units of the noise at which a pixel has half its weight in that fit
_ARC = 3.0  # signal-to-noise ratio above which a pixel without lens light belongs to an arc
_LIGHT_ERROR = 0.05  # error of the lens light assumed when drawing starts
_FINE_STEPS = 80
_LENSES = ("epl", "sie", "sis")


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fit of one scene to one observation.

    Attributes:
        scene: The fitted scene.
        observation: The observation to which it was fitted.
        parameters: Best-fitting values by name.
        errors: Standard deviations by name, from the curvature of the deviance.
        amplitudes: Linear amplitudes by name, in the unit of the image.
        model: Best-fitting noise-free image (rows, columns).
        chi2: Sum of squared residuals in units of the noise, over the fitted pixels.
        n_pixels: Number of fitted pixels.
        converged: Whether the predicted reduction of the deviance by an undamped step is below 0.1.
        at_bounds: Names of the parameters at a bound.
        steps: Number of model evaluations at full resolution.
        seconds: Processor time.
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

    @property
    def chi2_per_pixel(self) -> float:
        """Reduced chi2: chi2 per degree of freedom, close to 1 if the model and the noise map are correct."""
        return self.chi2 / max(self.n_pixels - len(self.parameters) - len(self.amplitudes), 1)

    @property
    def chi2_excess(self) -> float:
        """(chi2 - n) / sqrt(2 n) for n degrees of freedom: the excess of chi2 in standard deviations."""
        freedom = max(self.n_pixels - len(self.parameters) - len(self.amplitudes), 1)
        return (self.chi2 - freedom) / math.sqrt(2 * freedom)

    @cached_property
    def residual(self) -> Float[np.ndarray, "rows columns"]:
        """(image - model) / noise; zero for excluded pixels."""
        return np.asarray((self.observation.image - self.model) * np.sqrt(self.observation.weights))

    @property
    def theta_E(self) -> float:
        """Einstein radius of the main lens, arcsec: the radius of the circle with the area of its critical ellipse."""
        return self.scene.values_of(main_lens(self.scene), self.parameters)["theta_E"]

    def plot(self, path: Path | str) -> None:
        """Write a PNG of data, model, residual in units of the noise, and source plane."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(scene_figure.draw(self))

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


def fit(observation: Observation, scene: Scene, *, seed: int = 0, trace=None) -> FitResult:
    """Fit a scene to an observation.

    Args:
        observation: Image, noise map, mask and PSF.
        scene: Model to fit, with the starts, bounds and priors of its parameters.
        seed: Seed of the random starts.

    Returns:
        The fit with the lowest deviance. Check `converged`, `chi2_excess` and `at_bounds` before you use it.
    """
    started = time.process_time()
    oversampling = observation.psf.oversampling if observation.psf else 1
    scene = scene.softened(_CORE * observation.pixel_scale / oversampling)
    coarse = _coarse(observation)
    solver, data = Solver(scene, coarse.detector()), _data(coarse)
    starts = _starts(scene, coarse, solver, torch.Generator().manual_seed(seed))
    lens = scene.names.index(f"{main_lens(scene)}.theta_E")
    for steps, kept in _ROUNDS:
        state = solver.minimise(starts, _repeated(data, len(starts)), steps=steps)
        if trace is not None:
            trace.append((time.process_time()-started, [(round(float(v),3),round(float(d),0)) for v,d in zip(scene.external(state.internal)[:,lens], state.deviance)], state.steps.tolist()))
        starts = _distinct(scene.external(state.internal)[:, lens], state)[:kept]
    fine = Solver(scene, observation.detector())
    return _result(fine, fine.minimise(starts, _data(observation), steps=_FINE_STEPS), observation, started)


def _coarse(observation: Observation) -> Observation:
    """Return the observation in larger pixels, with one sample for each pixel."""
    side = _binning(observation)
    binned = observation.binned(side)
    return replace(binned, psf=observation.psf.binned(side) if observation.psf else None)


def _distinct(theta_E: Float[Tensor, " b"], state: State) -> Float[Tensor, "d p"]:
    """Return the internal parameters of fits with different Einstein radii, by increasing deviance."""
    chosen: list[int] = []
    for row in state.deviance.argsort().tolist():
        if all(abs(math.log(theta_E[row] / theta_E[other])) > _DIFFERENT for other in chosen):
            chosen.append(row)
    return state.internal[chosen]


def main_lens(scene: Scene) -> str:
    """Return the name of the main lens: the first isothermal or power-law component."""
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
    scene: Scene, observation: Observation, solver: Solver, generator: torch.Generator
) -> Float[Tensor, "s p"]:
    """Return the internal parameters of random draws with low deviance, at different Einstein radii.

    Masses are drawn first. Those that trace the light of the arcs back to the smallest region are kept, and of these
    the ones with the lowest deviance. The lens light is subtracted before.
    """
    light, subtracted = _lens_light(scene, observation)
    lens = main_lens(scene)
    reach = min(observation.image.shape) * observation.pixel_scale / 2
    columns = {}
    for name, p in zip(scene.names, scene.free, strict=True):
        component, _, symbol = name.partition(".")
        normal = torch.randn(_DRAWS, generator=generator)
        column = torch.full((_DRAWS,), light.get(name, p.start))
        if name == f"{lens}.theta_E":
            smallest, largest = max(p.low, 2 * observation.pixel_scale), min(p.high, 0.8 * reach)
            # increasing, so that equal parts of the draws are bins of theta_E
            column = smallest * torch.exp(torch.linspace(0, 1, _DRAWS) * math.log(largest / smallest))
        elif component == lens and symbol in ("e1", "e2"):
            column = light.get(f"light.{symbol}", 0.0) + 0.7 * p.step * normal
        elif component.startswith("light") or (symbol in ("centre_x", "centre_y") and component == lens):
            pass
        elif p.log:
            column = column * torch.exp(p.step * normal)
        elif not (component.startswith("source") and symbol in ("centre_x", "centre_y")):
            column = column + p.step * normal
        columns[name] = column
    drawn = scene.pack(columns).float()
    scatter = _trace_back(scene, drawn, observation, subtracted, generator).reshape(_STARTS, -1)
    kept = (scatter.argsort(1)[:, :_CANDIDATES] + torch.arange(_STARTS)[:, None] * scatter.shape[1]).flatten()
    drawn = scene.internal(drawn[kept])
    low, high = scene.bounds(drawn)
    drawn = drawn.clamp(low, high)
    deviance = torch.cat(
        [solver.deviance(part, _repeated(subtracted, len(part)), lens_light=False) for part in torch.split(drawn, 32)]
    )
    best = deviance.reshape(_STARTS, -1).argmin(1) + torch.arange(_STARTS) * _CANDIDATES
    return drawn[best]


def _trace_back(
    scene: Scene,
    parameters: Float[Tensor, "b p"],
    observation: Observation,
    subtracted: Data,
    generator: torch.Generator,
) -> Float[Tensor, " b"]:
    """Trace pixels of arcs back to the source plane; return their scatter, and move the sources to their medians."""
    excess = ((subtracted.images * subtracted.weights.sqrt())[0] - _ARC).clamp_min(0)
    if not bool(excess.any()):
        return torch.zeros(len(parameters))
    pixels = torch.multinomial(excess.flatten(), _ARC_PIXELS, replacement=True, generator=generator)
    height, width = observation.image.shape
    x = ((pixels % width) - (width - 1) / 2) * observation.pixel_scale
    y = ((pixels // width) - (height - 1) / 2) * observation.pixel_scale
    alpha = scene.deflection(parameters, x[None, None], y[None, None])
    squared = torch.zeros(len(parameters), _ARC_PIXELS)
    for symbol, at, by in zip(("centre_x", "centre_y"), (x, y), alpha, strict=True):
        traced = (at - by)[:, 0]
        centre = traced.median(1).values
        squared += (traced - centre[:, None]) ** 2
        for column, name in enumerate(scene.names):
            if name.startswith("source") and name.endswith(symbol):
                parameters[:, column] += centre
    return torch.log1p(squared / _COMPACT**2).mean(1)


def _lens_light(scene: Scene, observation: Observation) -> tuple[dict[str, float], Data]:
    """Fit the lens light alone, and return its parameters and the image without it.

    Pixels far from the model, such as those of arcs, have little weight in this fit. In the image returned, the noise
    includes a fraction of the lens light.
    """
    data = _data(observation)
    if not scene.lens_light.profiles:
        return {}, data
    alone = Scene([], [], scene.lens_light)
    solver = Solver(alone, observation.detector())
    state = solver.minimise(alone.internal(alone.start()).float(), data, steps=_LIGHT_STEPS)
    for _ in range(_LIGHT_ROUNDS):
        away = data.weights * (data.images - state.model) ** 2
        robust = Data(data.images, data.weights / (1 + away / _OUTLIER**2))
        state = solver.minimise(state.internal, robust, steps=_LIGHT_STEPS)
    values = alone.external(state.internal)[0].tolist()
    noise = (1 / data.weights + (_LIGHT_ERROR * state.model) ** 2).reciprocal()
    return dict(zip(alone.names, values, strict=True)), Data(data.images - state.model, noise)


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
