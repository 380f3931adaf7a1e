"""Starts of the fit of a scene: masses that trace the arcs back to a compact source, and the lens light."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError
from darklens.fit.scene_solver import Data, Solver, State, data_of
from darklens.scene.observation import Observation
from darklens.scene.scene import Scene

_DRAWS, _BINS, _CANDIDATES = 24_000, 12, 30  # masses, bins of theta_E, and masses whose deviance is computed in each
_BATCH = 32  # images rendered together
_TRACED = 500  # masses traced together: their arrays fit the cache of a processor
_ARC = 3.0  # signal-to-noise ratio above which a pixel without lens light belongs to an arc
_ARC_PIXELS, _COMPACT = 100, 0.1  # traced back to the source plane; size in arcsec of a compact source
_ELLIPTICITY_SCATTER = 0.7  # of the mass around that of the light, in units of `Parameter.step`
_LIGHT_STEPS, _LIGHT_ROUNDS = 15, 3  # of the fit of the lens light alone
_OUTLIER = 3.0  # residual in units of the noise at which a pixel has half its weight in that fit
LIGHT_ERROR = 0.05  # relative error of the lens light assumed for the draws
_LENSES = ("epl", "sie", "sis")


def main_lens(scene: Scene) -> str:
    """Return the name of the main lens: the first isothermal or power-law component.

    Raises:
        ConfigError: If there is none.
    """
    for name, profile in scene.profiles.items():
        if profile.kind in _LENSES:
            return name
    raise ConfigError(f"A fit needs a main lens in the scene: one mass profile of {', '.join(_LENSES)}.")


def draw_starts(
    solver: Solver, observation: Observation, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Float[Tensor, "s p"]:
    """Return internal parameters at which to start fits, one for each bin of the Einstein radius.

    Masses are drawn at random around the starts of the scene, with the ellipticity of the lens light. In each bin those
    are kept that trace the light of the arcs back to the most compact source, and of these the one with the lowest
    deviance. The lens light is subtracted before.

    Args:
        solver: Solver of the scene, for the pixels of the observation.
        observation: Image, noise map and mask, in large pixels to save time.
        generator: Source of random numbers, on the CPU.
        device: Device of the fit.
    """
    scene = solver.scene
    light, subtracted = _subtract_lens_light(scene, observation, data_of(observation, device))
    drawn = _masses(scene, observation, light, generator).to(device)
    scatter = _trace_back(solver, drawn, observation, subtracted, generator).reshape(_BINS, -1)
    first = torch.arange(_BINS, device=device)
    kept = scatter.argsort(1)[:, :_CANDIDATES] + first[:, None] * scatter.shape[1]
    internal = scene.internal(drawn[kept.flatten()])
    low, high = scene.bounds(internal)
    internal = internal.clamp(low, high)
    deviance = torch.cat(
        [
            solver.deviance(part, subtracted.repeated(len(part)), lens_light=False)
            for part in torch.split(internal, _BATCH)
        ]
    )
    return internal[deviance.reshape(_BINS, -1).argmin(1) + first * _CANDIDATES]


def _masses(
    scene: Scene, observation: Observation, light: dict[str, float], generator: torch.Generator
) -> Float[Tensor, "b p"]:
    """Return random parameters, with the Einstein radius increasing and the lens light and all centres as given."""
    lens = main_lens(scene)
    light_name = next((name for name, p in scene.profiles.items() if p in scene.lens_light.profiles), "")
    reach = min(observation.image.shape) * observation.pixel_scale / 2
    columns = {}
    for name, p in zip(scene.names, scene.free, strict=True):
        component, _, symbol = name.partition(".")
        normal = torch.randn(_DRAWS, generator=generator)
        column = torch.full((_DRAWS,), light.get(name, p.start))
        if name == f"{lens}.theta_E":
            smallest, largest = max(p.low, 2 * observation.pixel_scale), min(p.high, 0.8 * reach)
            column = smallest * (largest / smallest) ** torch.linspace(0, 1, _DRAWS)
        elif component == lens and symbol in ("e1", "e2"):
            column = light.get(f"{light_name}.{symbol}", p.start) + _ELLIPTICITY_SCATTER * p.step * normal
        elif name in light or symbol in ("centre_x", "centre_y"):
            pass
        elif p.log:
            column = column * torch.exp(p.step * normal)
        else:
            column = column + p.step * normal
        columns[name] = column
    return scene.pack(columns).float()


def _trace_back(
    solver: Solver,
    parameters: Float[Tensor, "b p"],
    observation: Observation,
    subtracted: Data,
    generator: torch.Generator,
) -> Float[Tensor, " b"]:
    """Trace pixels of arcs back to the source plane, place the sources at the median, and return a measure of scatter.

    Pixels are chosen with a probability proportional to the excess of their signal-to-noise ratio over `_ARC`. The
    measure is the mean of ln(1 + (distance / _COMPACT)^2), in which other objects have little weight.
    """
    excess = ((subtracted.images * subtracted.weights.sqrt())[0] - _ARC).clamp_min(0)
    if not bool(excess.any()):
        return torch.zeros(len(parameters), device=parameters.device)
    pixels = torch.multinomial(excess.cpu().flatten(), _ARC_PIXELS, replacement=True, generator=generator)
    pixels = pixels.to(parameters.device)
    height, width = observation.image.shape
    x = ((pixels % width) - (width - 1) / 2) * observation.pixel_scale
    y = ((pixels // width) - (height - 1) / 2) * observation.pixel_scale
    scene = solver.scene
    parts = [solver.deflection(part, x[None], y[None]) for part in torch.split(parameters, _TRACED)]
    alpha = torch.cat(parts).unbind(1)
    squared = torch.zeros(len(parameters), _ARC_PIXELS, device=parameters.device)
    sources = [name for name, profile in scene.profiles.items() if profile in scene.source.profiles]
    for symbol, at, by in zip(("centre_x", "centre_y"), (x, y), alpha, strict=True):
        traced = (at - by)[:, 0]
        centre = _medians(traced)
        squared += (traced - centre[:, None]) ** 2
        for column, name in enumerate(scene.names):
            if name in [f"{source}.{symbol}" for source in sources]:
                parameters[:, column] += centre
    return torch.log1p(squared / _COMPACT**2).mean(1)


def _medians(rows: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Return the lower median of each row; NumPy finds it four times as fast as torch on a processor."""
    if rows.device.type != "cpu":
        return rows.median(1).values
    middle = (rows.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(rows.numpy(), middle, axis=1)[:, middle])


def fit_light(solver: Solver, data: Data) -> State:
    """Fit a scene of lens light alone to images (b, rows, columns).

    Pixels far from the model, such as those of arcs, have little weight.
    """
    start = solver.scene.internal(solver.scene.start()).to(data.images).expand(len(data.images), -1)
    state = solver.minimise(start, data, steps=_LIGHT_STEPS)
    for _ in range(_LIGHT_ROUNDS):
        away = data.weights * (data.images - state.model) ** 2
        robust = Data(data.images, data.weights / (1 + away / _OUTLIER**2))
        state = solver.minimise(state.internal, robust, steps=_LIGHT_STEPS)
    return state


def _subtract_lens_light(scene: Scene, observation: Observation, data: Data) -> tuple[dict[str, float], Data]:
    """Fit the lens light alone, and return its parameters and the image without it.

    In the image returned, the noise includes a fraction of the lens light.
    """
    if not scene.lens_light.profiles:
        return {}, data
    alone = Scene([], [], scene.lens_light)
    state = fit_light(Solver(alone, observation.detector()), data)
    values = alone.external(state.internal)[0].tolist()
    noise = (1 / data.weights + (LIGHT_ERROR * state.model) ** 2).reciprocal()
    return dict(zip(alone.names, values, strict=True)), Data(data.images - state.model, noise)
