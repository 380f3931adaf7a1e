"""Fit of point masses in addition to the lens, one after the other."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.fit.evidence import PointMaps
from darklens.fit.levenberg import FitState
from darklens.fit.noise import Maps
from darklens.fit.prepared_images import PreparedImages

N_POINTS = 3
_STEPS = 4
_MASS = (1e-4, 0.02)  # arcsec^2, range of starting masses


def fit_points(
    prepared: PreparedImages, fit: FitState, deviance: Float[Tensor, " b"], points: PointMaps
) -> tuple[FitState, Float[Tensor, "b k"], Float[Tensor, " b"]]:
    """Return the fit with all point masses, delta chi2 for each number of them (b, k), and that of one more (b,).

    Args:
        prepared: The images.
        fit: The smooth fit.
        deviance: Its deviance.
        points: Maps of a point mass in addition to it.
    """
    model, (_, mass, information) = prepared.fitter.model("points"), points
    current, delta_chi2, best = fit, [], deviance
    for _ in range(N_POINTS):
        point_start = starting_points(prepared, mass, (mass * mass.abs() * information).flatten(1).argmax(1))
        best_fit = prepared.fit(model, torch.cat([current.parameters, point_start], 1), _STEPS)
        # A point mass that does not lower the deviance gets zero mass.
        rejected = torch.nonzero(~(best_fit.deviance < best))[:, 0]
        if len(rejected):
            point_start[:, 0] = 0
            start = torch.cat([current.parameters, point_start], 1)[rejected]
            best_fit.assign(rejected, prepared.rows(rejected).fit(model, start, 1))
        current, best = best_fit, best_fit.deviance
        delta_chi2.append(deviance - best)
        mass = prepared.templates.point_masses(
            prepared.pixels - current.model, prepared.weight(current), current.slopes, information
        )
    return current, torch.stack(delta_chi2, 1), (mass * mass.abs() * information).amax((1, 2))


def starting_points(prepared: PreparedImages, mass: Maps, index: Int[Tensor, " b"]) -> Float[Tensor, "b 3"]:
    """Return mass, x and y of a point mass in one pixel of each map."""
    x, y = (v.flatten() for v in prepared.templates.grid.coordinates(dtype=mass.dtype, device=mass.device))
    best_mass = mass.flatten(1).gather(1, index[:, None])[:, 0]
    return torch.stack([best_mass.clamp(*_MASS), x[index], y[index]], 1)
