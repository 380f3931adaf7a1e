"""Features of fits for classifiers: maps in standard deviations, and a summary with named columns."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.fit import misfit
from darklens.fit.fitter import Images
from darklens.fit.hypotheses import HypothesisFits, fit_hypotheses
from darklens.fit.perturber_fits import HYPOTHESES
from darklens.fit.point_fit import N_POINTS
from darklens.populations.population import Population

MapName = Literal["image", "residual", "line_residual", "point_residual", "evidence", "line_evidence"]
MAP_NAMES: tuple[MapName, ...] = ("image", "residual", "line_residual", "point_residual", "evidence", "line_evidence")
_SMOOTH_NAMES = ("theta_E", "gamma1", "gamma2", "source_x", "source_y", "centre_x", "centre_y")
SUMMARY_NAMES = (
    *_SMOOTH_NAMES,
    *("n_pixels_fitted", "deviance", "converged", "extra_variance"),
    *("delta_chi2_line", "delta_chi2_point_given_line", "evidence_peak"),
    *(f"delta_chi2_points_{k + 1}" for k in range(N_POINTS)),
    "delta_chi2_point_given_points",
    *("line_mass", "line_x", "line_y", "line_angle", "line_length"),
    *(f"point_{k + 1}_{name}" for k in range(N_POINTS) for name in ("mass", "x", "y")),
    *(f"{name}_{hypothesis}" for hypothesis in HYPOTHESES for name in misfit.NAMES),
    *("relative_exposure", "perturbers_fitted"),
)
"""Columns of the summary, units as in `HypothesisFits`; `evidence_peak` is the largest value of `evidence`."""

LARGEST = 1e9  # in the summary, in place of infinity
_CLIP = 100.0  # standard deviations, largest absolute value in a map


class FitFeatures(NamedTuple):
    """Features of the fits of b images.

    Attributes:
        maps: Maps `MAP_NAMES` (b, 6, m, m): the image scaled to a maximum of 1, residuals in standard deviations of the
            noise, and evidence as the signed square root of delta chi2.
        summary: Columns `SUMMARY_NAMES` (b, k).
    """

    maps: Float[Tensor, "b c m m"]
    summary: Float[Tensor, "b k"]

    def map(self, name: MapName) -> Float[Tensor, "b m m"]:
        """Return a map by name."""
        return self.maps[:, MAP_NAMES.index(name)]

    def column(self, name: str) -> Float[Tensor, " b"]:
        """Return a column of the summary by name."""
        return self.summary[:, SUMMARY_NAMES.index(name)]

    def columns(self) -> dict[str, Float[Tensor, " b"]]:
        """Return all columns of the summary by name."""
        return dict(zip(SUMMARY_NAMES, self.summary.unbind(1), strict=True))

    def rows(self, rows: slice | Sequence[int] | Tensor) -> "FitFeatures":
        """Return the features of a selection of the images."""
        return FitFeatures(self.maps[rows], self.summary[rows])

    def to(self, device: torch.device) -> "FitFeatures":
        """Return the features on a device."""
        return FitFeatures(self.maps.to(device), self.summary.to(device))

    def clone(self) -> "FitFeatures":
        """Return a copy."""
        return FitFeatures(self.maps.clone(), self.summary.clone())


def extract_features(
    images: Images,
    population: Population | str,
    *,
    exposure: Images | None = None,
    centred: bool = True,
) -> FitFeatures:
    """Fit all hypotheses to images and return their features; arguments as for `fit_hypotheses`."""
    return to_tensors(fit_hypotheses(images, population, exposure=exposure, centred=centred))


def to_tensors(fits: HypothesisFits) -> FitFeatures:
    """Convert fits to features: maps clipped to +-100 standard deviations, all values finite."""
    evidence = [v.sign() * v.abs().sqrt() for v in (fits.evidence, fits.line_evidence)]
    maps = torch.stack([fits.image, fits.residual, fits.line_residual, fits.point_residual, *evidence], 1)
    smooth = {name: torch.full_like(fits.deviance, value) for name, value in fits.fixed.items()}
    smooth |= dict(zip(fits.names, fits.smooth.unbind(1), strict=True))
    summary = [
        *(smooth[name] for name in _SMOOTH_NAMES),
        *(fits.n_pixels_fitted, fits.deviance.nan_to_num(nan=torch.inf), fits.converged.float(), fits.extra_variance),
        *(fits.delta_chi2_line, fits.delta_chi2_point_given_line, fits.evidence.amax((1, 2))),
        *fits.delta_chi2_points.unbind(1),
        fits.delta_chi2_point_given_points,
        *fits.line.unbind(1),
        *fits.points.flatten(1).unbind(1),
        *fits.misfit.flatten(1).unbind(1),
        *(fits.relative_exposure, fits.perturbers_fitted.float()),
    ]
    finite = {"nan": 0.0, "posinf": _CLIP, "neginf": -_CLIP}
    table = torch.stack(summary, 1).nan_to_num(nan=0.0, posinf=LARGEST, neginf=-LARGEST)
    return FitFeatures(maps.clamp(-_CLIP, _CLIP).nan_to_num(**finite), table)


def no_features() -> FitFeatures:
    """Return the features of zero images, with the usual names and columns."""
    return FitFeatures(torch.zeros(0, len(MAP_NAMES), 1, 1), torch.zeros(0, len(SUMMARY_NAMES)))
