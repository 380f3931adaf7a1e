"""Reconstruction of a structured source on a grid of B-splines, after a fit with profiles.

The lens is fitted again with the grid, all its parameters free. The strength of the smoothness prior is that of the
highest evidence (MacKay 1992, Neural Computation 4, 415; Suyu et al. 2006, MNRAS 371, 983), alternating with the fit.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError, InputError
from darklens.fit.scene_fit import FitResult, result_of
from darklens.fit.scene_solver import Data, Solver, data_of, detector_of
from darklens.scene.scene import Scene
from darklens.scene.source_grid import SourceGrid, curvature

DEFAULT_NODES = 32
_SIGNIFICANT = 3.0  # signal-to-noise ratio of pixels whose light must come from the grid
_CONTAINED, _MARGIN = 0.98, 1.15  # fraction of this light that the grid contains; margin of its half width
_SMALLEST, _LARGEST = 0.1, 2.0  # arcsec, half width
_FIRST_SMOOTHNESS = 1e-3  # in units of one over the variance of a pixel
_ROUNDS, _STEPS = 3, 15  # fits with another smoothness, and their steps
_RIDGE = 1e-9  # relative to a diagonal element: nodes of the grid that no ray reaches
_EVIDENCE_ROUNDS, _SAME = 8, 0.05  # updates of the smoothness, and their smallest relative change


def reconstruct_source(
    result: FitResult, n: int = DEFAULT_NODES, *, half_width: float | None = None, device: torch.device | str = "cpu"
) -> FitResult:
    """Fit an observation again with a source on a grid of n x n B-splines in place of its source profiles.

    Args:
        result: Fit with source profiles, from which the lens starts.
        n: Number of nodes along a side.
        half_width: Half side of the grid, arcsec; by default such that it contains 98 % of the significant light.
        device: Device that computes the fit.

    Returns:
        The fit with the grid. `chi2_per_pixel` takes into account how many amplitudes the image determines.

    Raises:
        ConfigError: If n or half_width are out of bounds, or the source of `result` is a grid already.
        InputError: If the image has no arcs above the noise.
    """
    if result.scene.source_grid is not None:
        raise ConfigError("The source of this fit is a grid already; start from the fit before it.")
    started, unit = time.process_time(), result.observation.unit
    result = result.scaled(1 / unit)
    observation, scene = result.observation, result.scene
    centre_x, centre_y, reach = _extent(result)
    width = reach if half_width is None else half_width

    def model_of(smoothness: float) -> Scene:
        grid = SourceGrid(
            n, half_width=width, smoothness=smoothness, name="source", centre_x=centre_x, centre_y=centre_y
        )
        return Scene(scene.mass, grid, scene.lens_light)

    model, data = model_of(_FIRST_SMOOTHNESS), data_of(observation, device)
    internal = model.internal(model.pack({name: result.parameters[name] for name in model.names})).float().to(device)
    solver = Solver(model, detector_of(observation, model))
    for _ in range(_ROUNDS):
        solver = Solver(model_of(_most_likely_smoothness(solver, internal, data)), solver.detector)
        state = solver.minimise(internal, data, steps=_STEPS)
        internal = state.internal
    fitted = result_of(solver, state, observation, started).scaled(unit)
    return replace(fitted, alternatives=result.alternatives, seconds=time.process_time() - started)


def _extent(result: FitResult) -> tuple[float, float, float]:
    """Return the centre and the half width of the square in the source plane with most of the significant light."""
    scene, observation = result.scene, result.observation
    parameters, detector = scene.pack(result.parameters), detector_of(observation, scene)
    amplitudes = torch.tensor([[result.amplitudes[name] for name in scene.amplitude_names]], dtype=torch.float64)
    amplitudes[:, : scene.source.n_amplitudes] = 0
    light = scene.render(parameters, amplitudes, detector)[0].numpy()
    excess = ((observation.image - light) * np.sqrt(observation.weights) - _SIGNIFICANT).clip(min=0)
    if not excess.any():
        raise InputError("The image has no arcs above the noise from which to reconstruct a source.")
    rows, columns = np.nonzero(excess)
    weights = excess[rows, columns]
    height, width = observation.image.shape
    x, y = (
        torch.from_numpy((at - (n - 1) / 2) * observation.pixel_scale) for at, n in ((columns, width), (rows, height))
    )
    traced = [
        (at - by[0, 0]).numpy() for at, by in zip((x, y), scene.deflection(parameters, x[None], y[None]), strict=True)
    ]
    centre = [_quantile(at, weights, 0.5) for at in traced]
    distance = np.maximum(*(np.abs(at - middle) for at, middle in zip(traced, centre, strict=True)))
    half_width = _MARGIN * _quantile(distance, weights, _CONTAINED)
    return centre[0], centre[1], min(max(half_width, _SMALLEST), _LARGEST)


def _quantile(values: np.ndarray, weights: np.ndarray, fraction: float) -> float:
    """Return the weighted quantile of values."""
    order = values.argsort()
    cumulative = weights[order].cumsum()
    return float(values[order][np.searchsorted(cumulative, fraction * cumulative[-1])])


def _most_likely_smoothness(solver: Solver, internal: Float[Tensor, "1 p"], data: Data) -> float:
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
        factor = torch.linalg.cholesky(likelihood + smoothness * penalty + _RIDGE * torch.diag(likelihood.diagonal()))
        amplitudes = torch.cholesky_solve(target[:, None], factor)[:, 0]
        determined = grid.n_basis - smoothness * torch.cholesky_solve(penalty, factor).diagonal().sum()
        before, smoothness = smoothness, float(determined / (amplitudes @ (penalty @ amplitudes)))
        if abs(smoothness / before - 1) < _SAME:
            break
    return smoothness
