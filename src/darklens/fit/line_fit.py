"""Fit of one line mass in addition to the lens, from several starting lines."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.fit.evidence import LineMaps, line_centres, shape_of
from darklens.fit.levenberg import FitState, minimise
from darklens.fit.model import FitParameters
from darklens.fit.noise import Maps
from darklens.fit.prepared_images import PreparedImages

_STARTS, _STARTS_FREE_CENTRE = 3, 6  # with fixed centres, and with free ones, which have more local minima
_SEPARATION = 0.45  # arcsec, smallest distance between the centres of starting lines
# Blur of the line (arcsec) and largest number of steps; the first stage uses coarsely sampled light.
_COARSE_BLUR, _COARSE_STEPS = 0.1, (4, 4)
_CONTINUED = 3  # number of starts that are continued after the first coarse steps
_FINE = ((0.03, 5), (0.0, 3))
_RETRY = ((0.1, 6), (0.03, 4), (0.0, 3))
# Range of delta_chi2_point_given_line in which other lines are tried: below, it is noise; above, no line fits.
_RETRY_ABOVE, _RETRY_BELOW, _RETRY_BELOW_FREE_CENTRE = 16.0, 400.0, 3000.0
_MASS = (1e-3, 0.15)  # arcsec^2, range of starting masses


def fit_line(prepared: PreparedImages, starts: Float[Tensor, "s b q"]) -> tuple[FitState, Maps]:
    """Return the fit with one line, and the evidence map of a point mass in addition to it."""
    coarse_fits = _coarse_lines(prepared, starts)
    best_fit = _anneal(prepared, coarse_fits.parameters[0], _FINE)
    evidence = prepared.evidence(best_fit)
    largest_evidence = evidence.amax((1, 2))
    is_centred = prepared.fitter.lens.centred
    retry_rows = torch.nonzero(
        (largest_evidence > _RETRY_ABOVE)
        & (largest_evidence < (_RETRY_BELOW if is_centred else _RETRY_BELOW_FREE_CENTRE))
    )[:, 0]
    if len(retry_rows):
        if is_centred:
            start = coarse_fits.starts[1, retry_rows]
        else:
            mirrored = prepared.fitter.model("line").mirrored
            mirrored_starts = torch.stack([mirrored(start) for start in starts[:, retry_rows]])
            start = _coarse_lines(prepared.rows(retry_rows), mirrored_starts).parameters[0]
        retried = _anneal(prepared.rows(retry_rows), start, _RETRY)
        better = retried.deviance < best_fit.deviance[retry_rows]
        if better.any():
            rows, retried = retry_rows[better], retried.rows(better)
            best_fit.assign(rows, retried)
            evidence[rows] = prepared.rows(rows).evidence(retried)
    return best_fit, evidence


class _LineFits(NamedTuple):
    """The results of fits from s starting values for each of b images."""

    starts: Float[Tensor, "s b q"]
    parameters: Float[Tensor, "s b q"]
    deviance: Float[Tensor, "s b"]

    def best(self, n: int) -> "_LineFits":
        """Return the n fits of smallest deviance of each image, best first."""
        order = self.deviance.argsort(0)[:n]
        rows = order[:, :, None].expand(-1, -1, self.starts.shape[2])
        return _LineFits(self.starts.gather(0, rows), self.parameters.gather(0, rows), self.deviance.gather(0, order))


def _coarse_lines(prepared: PreparedImages, starts: Float[Tensor, "s b q"]) -> _LineFits:
    """Fit a blurred line to coarsely sampled light; only the best fits after the first steps are continued."""
    fits = _LineFits(starts, starts, starts.new_zeros(starts.shape[:2]))
    for steps in _COARSE_STEPS:
        fits = _coarse_steps(prepared, fits, steps).best(_CONTINUED)
    return fits


def _coarse_steps(prepared: PreparedImages, fits: _LineFits, steps: int) -> _LineFits:
    """Continue fits; a NaN deviance becomes infinite."""
    n_starts, n_images, _ = fits.parameters.shape
    rows = torch.arange(n_images, device=fits.parameters.device).repeat(n_starts)
    state = minimise(
        prepared.fitter.model("line", blur=_COARSE_BLUR, coarse=True),
        prepared.coarse_pixels[rows],
        prepared.coarse_noise.rows(rows),
        fits.parameters.flatten(0, 1),
        steps=steps,
        gain=prepared.gain[rows],
        with_slopes=False,
    )
    deviance = state.deviance.reshape(n_starts, n_images).nan_to_num(torch.inf)
    return _LineFits(fits.starts, state.parameters.reshape(fits.parameters.shape), deviance)


def _anneal(prepared: PreparedImages, start: FitParameters, schedule: tuple[tuple[float, int], ...]) -> FitState:
    *first, (last_blur, last_steps) = schedule
    for blur, steps in first:
        start = prepared.fit(prepared.fitter.model("line", blur=blur), start, steps, with_slopes=False).parameters
    return prepared.fit(prepared.fitter.model("line", blur=last_blur), start, last_steps)


def starting_lines(
    prepared: PreparedImages, fit: FitState, lines: LineMaps
) -> tuple[Float[Tensor, "s b q"], Float[Tensor, " b"]]:
    """Return starting values and the largest delta chi2: the best lines, `_SEPARATION` apart, best first."""
    best, shape = lines.delta_chi2.max(1)
    best, shape, mass = best.flatten(1).clone(), shape.flatten(1), lines.mass.flatten(2)
    largest = best.amax(1)
    axis = constant(tuple(line_centres()), torch.float32, best.device)
    x, y = axis.repeat(len(axis)), axis.repeat_interleave(len(axis))
    rows, starts = torch.arange(len(best), device=best.device), []
    for _ in range(_STARTS if prepared.fitter.lens.centred else _STARTS_FREE_CENTRE):
        index = best.argmax(1)
        template = shape[rows, index]
        length, angle = shape_of(template)
        start_mass = mass[rows, template, index].clamp(*_MASS)
        line = torch.stack([start_mass, x[index], y[index], angle, length.log()], 1)
        starts.append(torch.cat([fit.parameters, line], 1))
        nearby = (x - x[index, None]) ** 2 + (y - y[index, None]) ** 2 < _SEPARATION**2
        best[nearby] = -torch.inf
    return torch.stack(starts), largest
