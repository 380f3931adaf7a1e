"""Fits of a line mass and of point masses in addition to the smooth lens, and their first-order estimates."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.fit import masses
from darklens.fit.evidence import LineMaps, PointMaps
from darklens.fit.levenberg import FitState
from darklens.fit.line_fit import fit_line, starting_lines
from darklens.fit.noise import Maps
from darklens.fit.point_fit import N_POINTS, fit_points, starting_points
from darklens.fit.prepared_images import PreparedImages

HYPOTHESES = ("smooth", "line", "points")


@dataclass(frozen=True)
class PerturberFits:
    """Fits of a line mass, and of k point masses, to b images with n x n fitted pixels around the optical axis.

    Masses are in arcsec^2 (theta_E^2), positions and lengths in arcsec; delta chi2 is a reduction of the deviance.

    Attributes:
        delta_chi2_line: Delta chi2 of one line mass (b,).
        line: Mass, x, y, angle (radians from x towards y) and length of the line (b, 5).
        delta_chi2_point_given_line: Delta chi2 of a point mass in addition to the line (b,).
        delta_chi2_points: Delta chi2 of one, two, ... k point masses (b, k).
        points: Mass, x and y of each of the k point masses, fitted jointly (b, k, 3).
        delta_chi2_point_given_points: Delta chi2 of one more point mass (b,).
        line_residual: (image - model) / sigma for the model with the line (b, n, n).
        point_residual: The same for the model with k point masses (b, n, n).
        line_evidence: Delta chi2 of a point mass at each position in addition to the line, with the sign of the mass
            (b, n, n).
        misfit: Score tests `misfit.NAMES` of the fits `HYPOTHESES` (b, 3, t).
    """

    delta_chi2_line: Float[Tensor, " b"]
    line: Float[Tensor, "b 5"]
    delta_chi2_point_given_line: Float[Tensor, " b"]
    delta_chi2_points: Float[Tensor, "b k"]
    points: Float[Tensor, "b k 3"]
    delta_chi2_point_given_points: Float[Tensor, " b"]
    line_residual: Maps
    point_residual: Maps
    line_evidence: Maps
    misfit: Float[Tensor, "b 3 t"]

    def assign(self, rows: Tensor, other: "PerturberFits") -> None:
        """Replace a selection of the images."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


def estimate_perturbers(
    prepared: PreparedImages, fit: FitState, points: PointMaps, lines: LineMaps
) -> tuple[PerturberFits, Float[Tensor, "s b q"]]:
    """Return the perturbers of largest first-order delta chi2, and starting values of lines.

    Args:
        prepared: The images.
        fit: The smooth fit.
        points: Maps of a point mass in addition to it.
        lines: Maps of a line mass in addition to it.
    """
    line_starts, delta_chi2_line = starting_lines(prepared, fit, lines)
    evidence, index = points.delta_chi2.flatten(1).max(1)
    first_point = evidence.new_zeros(len(evidence), N_POINTS, len(masses.POINT))
    first_point[:, 0] = starting_points(prepared, points.mass, index)
    residual = prepared.residual(fit)
    perturbers = PerturberFits(
        delta_chi2_line=delta_chi2_line,
        line=_lines_of(line_starts[0, :, prepared.n_smooth :]),
        delta_chi2_point_given_line=evidence.clone(),
        delta_chi2_points=evidence[:, None].repeat(1, N_POINTS),
        points=first_point,
        delta_chi2_point_given_points=evidence.clone(),
        line_residual=residual,
        point_residual=residual.clone(),
        line_evidence=points.delta_chi2.clone(),
        misfit=prepared.score_tests(fit, [fit]).repeat(1, len(HYPOTHESES), 1),
    )
    return perturbers, line_starts


def fit_perturbers(
    prepared: PreparedImages,
    fit: FitState,
    deviance: Float[Tensor, " b"],
    line_starts: Float[Tensor, "s b q"],
    points: PointMaps,
    smooth_misfit: Float[Tensor, "b 1 t"],
) -> PerturberFits:
    """Return fits of a line mass and of point masses.

    Args:
        prepared: The images.
        fit: The smooth fit.
        deviance: Its deviance.
        line_starts: Starting values of the line.
        points: Maps of a point mass in addition to the smooth fit.
        smooth_misfit: Score tests of the smooth fit.
    """
    with_line, line_evidence = fit_line(prepared, line_starts)
    with_points, delta_chi2_points, delta_chi2_point_given_points = fit_points(prepared, fit, deviance, points)
    return PerturberFits(
        delta_chi2_line=deviance - with_line.deviance,
        line=_lines_of(with_line.parameters[:, prepared.n_smooth :]),
        delta_chi2_point_given_line=line_evidence.amax((1, 2)),
        delta_chi2_points=delta_chi2_points,
        points=with_points.parameters[:, prepared.n_smooth :].reshape(-1, N_POINTS, len(masses.POINT)),
        delta_chi2_point_given_points=delta_chi2_point_given_points,
        line_residual=prepared.residual(with_line),
        point_residual=prepared.residual(with_points),
        line_evidence=line_evidence,
        misfit=torch.cat([smooth_misfit, prepared.score_tests(fit, [with_line, with_points])], 1),
    )


def _lines_of(parameters: Float[Tensor, "b 5"]) -> Float[Tensor, "b 5"]:
    """Return mass, x, y, angle and length of lines."""
    return torch.cat([parameters[:, :4], parameters[:, 4:].exp()], 1)
