"""Fit a scene to an observation: `fit(observation, scene)`.

1. The lens light is fitted without lens and source.
2. Lens and source parameters are drawn at random around the defaults of the scene. For each draw the linear amplitudes
   are solved for, and the deviance of a binned image is computed.
3. The best draws start Levenberg-Marquardt fits of the binned image.
4. The best of these fits is continued on the full-resolution image.
"""

import math
import time
from dataclasses import dataclass, field
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
_DRAWS, _STARTS, _KEPT = 1200, 12, 3
_LIGHT_STEPS, _LIGHT_ROUNDS = 15, 3  # of the fit of the lens light alone
_OUTLIER = 3.0  # residual in units of the noise at which a pixel has half its weight in that fit
_ARC = 3.0  # signal-to-noise ratio above which a pixel without lens light belongs to an arc
_LIGHT_ERROR = 0.05  # error of the lens light assumed when drawing starts
_FIRST_STEPS, _COARSE_STEPS, _FINE_STEPS = 10, 40, 80
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
    coarse = observation.binned(_binning(observation))
    coarse_solver = Solver(scene, coarse.detector(supersample=coarse.psf.oversampling if coarse.psf else 1))
    fine_solver = Solver(scene, observation.detector())
    coarse_data, fine_data = _data(coarse), _data(observation)
    starts = _starts(scene, coarse, torch.Generator().manual_seed(seed))
    first = coarse_solver.minimise(starts, _repeated(coarse_data, len(starts)), steps=_FIRST_STEPS)
    best = first.deviance.argsort()[:_KEPT]
    second = coarse_solver.minimise(first.internal[best], _repeated(coarse_data, len(best)), steps=_COARSE_STEPS)
    start = second.internal[second.deviance.argmin()][None]
    if trace is not None:
        e=lambda st: [(round(float(v),3),round(float(d),0)) for v,d in zip(scene.external(st.internal)[:,scene.names.index(f"{main_lens(scene)}.theta_E")], st.deviance)]
        trace.append(("starts",[round(float(v),3) for v in scene.external(starts)[:,scene.names.index(f"{main_lens(scene)}.theta_E")]],time.process_time()-started)); trace.append(("first", e(first))); trace.append(("second",e(second),second.steps.tolist(),time.process_time()-started))
    return _result(fine_solver, fine_solver.minimise(start, fine_data, steps=_FINE_STEPS), observation, started)


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


def _starts(scene: Scene, observation: Observation, generator: torch.Generator) -> Float[Tensor, "s p"]:
    """Return the internal parameters of random draws with low deviance, at different Einstein radii.

    The draws fit the image from which the lens light has been subtracted.
    """
    light, subtracted = _lens_light(scene, observation)
    values = {name: p.start for name, p in zip(scene.names, scene.free, strict=True)} | light
    lens = main_lens(scene)
    reach = min(observation.image.shape) * observation.pixel_scale / 2
    columns = {}
    for name, p in zip(scene.names, scene.free, strict=True):
        component, _, symbol = name.partition(".")
        normal = torch.randn(_DRAWS, generator=generator)
        column = torch.full((_DRAWS,), values[name])
        if name == f"{lens}.theta_E":
            smallest, largest = max(p.low, 2 * observation.pixel_scale), min(p.high, 0.8 * reach)
            column = smallest * torch.exp(torch.rand(_DRAWS, generator=generator) * math.log(largest / smallest))
        elif component == lens and symbol in ("e1", "e2"):
            column = values.get(f"light.{symbol}", 0.0) + 0.7 * p.step * normal
        elif component.startswith("source") and symbol in ("centre_x", "centre_y"):
            column = 0.05 * normal  # from the light traced back
        elif component.startswith("light") or (symbol in ("centre_x", "centre_y") and component == lens):
            pass
        elif p.log:
            column = column * torch.exp(p.step * normal)
        else:
            column = column + p.step * normal
        columns[name] = column
    drawn = scene.pack(columns).float()
    for symbol, centre in zip(("centre_x", "centre_y"), _source_centres(scene, drawn, observation, subtracted), strict=True):
        for name in scene.names:
            if name.startswith("source") and name.endswith(symbol):
                drawn[:, scene.names.index(name)] += centre
    drawn = scene.internal(drawn)
    low, high = scene.bounds(drawn)
    drawn = drawn.clamp(low, high)
    solver = Solver(scene, observation.detector(supersample=observation.psf.oversampling if observation.psf else 1))
    deviance = torch.cat(
        [solver.deviance(part, _repeated(subtracted, len(part)), lens_light=False) for part in torch.split(drawn, 32)]
    )
    bins = torch.log(columns[f"{lens}.theta_E"]).argsort().reshape(_STARTS, -1)  # equal numbers of draws by theta_E
    best = bins.gather(1, deviance[bins].argmin(1, keepdim=True))[:, 0]
    return drawn[best]

def _source_centres(scene: Scene, parameters: Tensor, observation: Observation, subtracted: Data) -> tuple[Tensor, Tensor]:
    """Return the weighted mean position of the light of arcs, traced back to the source plane by each draw."""
    weight = (subtracted.images * subtracted.weights.sqrt())[0] - _ARC
    rows, columns = torch.nonzero(weight > 0, as_tuple=True)
    if not len(rows):
        return torch.zeros(len(parameters)), torch.zeros(len(parameters))
    weight = weight[rows, columns]
    height, width = observation.image.shape
    x = (columns - (width - 1) / 2) * observation.pixel_scale
    y = (rows - (height - 1) / 2) * observation.pixel_scale
    alpha_x, alpha_y = scene.deflection(parameters, x[None, None], y[None, None])
    return tuple(((v - alpha)[:, 0] * weight).sum(1) / weight.sum() for v, alpha in ((x, alpha_x), (y, alpha_y)))


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
