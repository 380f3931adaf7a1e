"""Reconstruction of a structured source on a grid of B-splines, after a fit with profiles.

The lens is fitted again with the grid, all its parameters free. The strength of the smoothness prior is that of the
highest evidence (MacKay 1992, Neural Computation 4, 415; Suyu et al. 2006, MNRAS 371, 983), alternating with the fit.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError, InputError
from darklens.fit.fit_result import LARGEST_FOCUS, FitResult, OtherSolution, result_of
from darklens.fit.scene_solver import Data, Solver, data_of, detector_of
from darklens.fit.source_plane import focus
from darklens.scene.scene import Scene
from darklens.scene.source_grid import SourceGrid, curvature

DEFAULT_NODES = 32
_SIGNIFICANT = 3.0  # signal-to-noise ratio of pixels whose light must come from the grid
_CONTAINED, _MARGIN = 0.995, 1.15  # fraction of this light that the grid contains; margin of its half width
_SMALLEST, _LARGEST = 0.1, 2.0  # arcsec, half width
_FIRST_SMOOTHNESS = 1e-3  # in units of one over the variance of a pixel
_ROUNDS, _STEPS = 3, 15  # fits with another smoothness, and their steps
_RIDGE = 1e-9  # relative to a diagonal element: for nodes of the grid that no ray reaches
_EVIDENCE_ROUNDS, _SAME = 8, 0.05  # updates of the smoothness, and their smallest relative change


def reconstruct_source(
    result: FitResult, n: int = DEFAULT_NODES, *, half_width: float | None = None, device: torch.device | str = "cpu"
) -> FitResult:
    """Fit an observation again with a source on a grid of n x n B-splines in place of its source profiles.

    Args:
        result: Fit with source profiles, from which the lens starts.
        n: Number of nodes along a side.
        half_width: Half side of the grid, arcsec; by default such that it contains 99.5 % of the significant light.
        device: Device that computes the fit.

    Returns:
        The fit with the grid. `chi2_per_pixel` takes into account how many amplitudes the image determines. Each of the
        `alternatives` of `result` is fitted too, and the solution with the highest evidence returned. A solution whose
        source is nearly as large as its images (`LARGEST_FOCUS`) is returned only if there is no other.

    Raises:
        ConfigError: If n or half_width are out of bounds, or the source of `result` is a grid already.
        InputError: If the image has no arcs above the noise.
    """
    if result.scene.source_grid is not None:
        raise ConfigError("The source of this fit is a grid already; start from the fit before it.")
    started, unit = time.process_time(), result.observation.unit
    result = result.scaled(1 / unit)
    rays = _rays(result)
    starts = [result.parameters, *(other.parameters for other in result.alternatives)]
    fits = [_fit_grid(result, values, n, half_width, rays, device) for values in starts]
    fits = [entry for entry in fits if focus(entry[0]) < LARGEST_FOCUS] or fits
    (best, lowest), *others = sorted(fits, key=itemgetter(1))
    solutions = [OtherSolution(other.theta_E, c - lowest, other.parameters, "-2 ln(evidence)") for other, c in others]
    fitted = best.with_alternatives(solutions).scaled(unit)
    return replace(fitted, seconds=time.process_time() - started)


def _fit_grid(
    result: FitResult,
    values: Mapping[str, float],
    n: int,
    half_width: float | None,
    rays: Float[Tensor, "3 m"],
    device: torch.device | str,
) -> tuple[FitResult, float]:
    """Return the fit with a grid that starts from the given lens, and minus twice the logarithm of its evidence.

    The latter leaves out constants that do not depend on the start.
    """
    started, observation, scene = time.process_time(), result.observation, result.scene
    data, smoothness = data_of(observation, device), _FIRST_SMOOTHNESS
    for _ in range(_ROUNDS):
        centre_x, centre_y, core, reach = _extent(scene, values, rays)
        frame = scene.source_frame(scene.complete(scene.pack(values)), rays)
        grid = SourceGrid(
            n,
            half_width=reach if half_width is None else half_width,
            core=core,
            smoothness=smoothness,
            rays=rays,
            reference=(float(frame.x), float(frame.y), float(frame.size)),
            name="source",
            centre_x=centre_x,
            centre_y=centre_y,
        )
        model = Scene(scene.mass, grid, scene.lens_light)
        solver = Solver(model, detector_of(observation, model))
        internal = model.internal(model.pack({name: values[name] for name in model.names})).float().to(device)
        smoothness = _smoothness_by_evidence(solver, internal, data)
        model = Scene(scene.mass, grid.smoothed(smoothness), scene.lens_light)
        solver = Solver(model, solver.detector)
        state = solver.minimise(internal, data, steps=_STEPS)
        scene, values = model, dict(zip(model.names, model.external(state.internal)[0].tolist(), strict=True))
    matrix = solver.amplitude_equations(state.internal, data)[0][0]
    volume = float(_factor(matrix).diagonal().log().sum()) * 2 - n * n * math.log(smoothness)
    return result_of(solver, state, observation, started), float(state.deviance) + volume


def _rays(result: FitResult) -> Float[Tensor, "3 m"]:
    """Return positions and weights of the pixels with significant light of the source, float64."""
    scene, observation = result.scene, result.observation
    parameters, detector = scene.pack(result.parameters), detector_of(observation, scene)
    amplitudes = torch.tensor([[result.amplitudes[name] for name in scene.amplitude_names]], dtype=torch.float64)
    amplitudes[:, : scene.source.n_amplitudes] = 0
    light = scene.render(parameters, amplitudes, detector)[0].numpy()
    excess = ((observation.image - light) * np.sqrt(observation.weights) - _SIGNIFICANT).clip(min=0)
    if not excess.any():
        raise InputError("The image has no arcs above the noise from which to reconstruct a source.")
    rows, columns = np.nonzero(excess)
    x, y = (
        (at - (n - 1) / 2) * observation.pixel_scale for at, n in zip((columns, rows), excess.shape[::-1], strict=True)
    )
    return torch.from_numpy(np.stack([x, y, excess[rows, columns] / excess.sum()]))


def _extent(scene: Scene, values: Mapping[str, float], rays: Float[Tensor, "3 m"]) -> tuple[float, float, float, float]:
    """Return centre, half-light radius and half width of the source, arcsec, from the light of traced-back rays."""
    x, y, weights = rays.numpy()
    deflection = scene.deflection(scene.pack(values), rays[0][None], rays[1][None])
    traced = [at - by[0, 0].numpy() for at, by in zip((x, y), deflection, strict=True)]
    centre = [_quantile(at, weights, 0.5) for at in traced]
    away = [np.abs(at - middle) for at, middle in zip(traced, centre, strict=True)]
    half_width = _MARGIN * _quantile(np.maximum(*away), weights, _CONTAINED)
    half_light = _quantile(np.hypot(*away), weights, 0.5)
    return centre[0], centre[1], half_light, min(max(half_width, _SMALLEST), _LARGEST)


def _factor(matrix: Float[Tensor, "l l"]) -> Float[Tensor, "l l"]:
    """Return the Cholesky factor of a matrix, with as much added to its diagonal as rounding errors make necessary."""
    diagonal, ridge = torch.diag(matrix.diagonal()), _RIDGE
    while True:
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge * diagonal)
        if not int(failed) or ridge >= 1:
            return factor
        ridge *= 10


def _quantile(values: np.ndarray, weights: np.ndarray, fraction: float) -> float:
    """Return the weighted quantile of values."""
    order = values.argsort()
    cumulative = weights[order].cumsum()
    return float(values[order][np.searchsorted(cumulative, fraction * cumulative[-1])])


def _smoothness_by_evidence(solver: Solver, internal: Float[Tensor, "1 p"], data: Data) -> float:
    """Return the smoothness of the highest evidence at the given parameters.

    At the maximum, smoothness times a.R.a is the number of amplitudes a that the image determines, for the matrix R of
    `curvature`.
    """
    grid, prior = solver.scene.source_grid, solver.scene.amplitude_prior
    assert grid is not None
    assert prior is not None
    matrix, target = (part[0] for part in solver.amplitude_equations(internal, data))
    penalty = torch.zeros_like(matrix)
    penalty[: grid.n_basis, : grid.n_basis] = curvature(grid.n).to(matrix)
    likelihood = matrix - prior.to(matrix)
    smoothness = grid.smoothness
    for _ in range(_EVIDENCE_ROUNDS):
        factor = _factor(likelihood + smoothness * penalty)
        amplitudes = torch.cholesky_solve(target[:, None], factor)[:, 0]
        determined = grid.n_basis - smoothness * torch.cholesky_solve(penalty, factor).diagonal().sum()
        before, smoothness = smoothness, float(determined / (amplitudes @ (penalty @ amplitudes)))
        if abs(smoothness / before - 1) < _SAME:
            break
    return smoothness
