"""Success of a fit, its parameters as text columns, and features for classifiers and OOD detection."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.fit.features import LARGEST, FitFeatures
from darklens.fit.point_fit import N_POINTS

_LARGEST_CHI2_PER_PIXEL = 6.0  # of the best hypothesis; at most 2.6 in successful fits (experiments/hypotheses.yaml)
N_SUMMARY_FEATURES = 13 + 3 * N_POINTS
FAILED = "failed, classified by the image alone"


def fit_succeeded(features: FitFeatures) -> Bool[Tensor, " b"]:
    """Return whether the best hypothesis fits the image; none fits lenses that the population cannot produce."""
    is_fitted = features.column("deviance") < LARGEST  # infinite without contrast
    return is_fitted & (_smallest_deviance(features) < _LARGEST_CHI2_PER_PIXEL * features.column("n_pixels_fitted"))


def findings(features: FitFeatures) -> dict[str, list[str]]:
    """Return the fitted parameters as columns of text: arcsec, masses in arcsec^2 (theta_E^2), angles in degrees.

    `chi2_per_pixel` is the deviance of the smooth lens divided by the number of fitted pixels. `chi2_per_pixel_line`
    and `chi2_per_pixel_points` are the same with one line and with all point masses. `delta_chi2_line` and
    `delta_chi2_points` are the reductions of the deviance, and `delta_chi2_point_given_line` is the reduction by a
    point mass in addition to the line. `relative_exposure` is the exposure that the noise shows, relative to that of
    the population. `perturbers` is "fitted", or "below the noise" if the values of line and points are first-order
    estimates (`HypothesisFits.perturbers_fitted`).
    """
    value = features.columns()
    n_pixels, points = value["n_pixels_fitted"], f"delta_chi2_points_{N_POINTS}"
    columns = {
        **{name: value[name] for name in ("theta_E", "centre_x", "centre_y")},
        "chi2_per_pixel": value["deviance"] / n_pixels,
        "chi2_per_pixel_line": (value["deviance"] - value["delta_chi2_line"]).clamp_min(0) / n_pixels,
        "chi2_per_pixel_points": (value["deviance"] - value[points]).clamp_min(0) / n_pixels,
        "delta_chi2_line": value["delta_chi2_line"],
        "delta_chi2_points": value[points],
        "delta_chi2_point_given_line": value["delta_chi2_point_given_line"],
        **{name: value[name] for name in ("line_mass", "line_x", "line_y", "line_length")},
        "line_angle": torch.rad2deg(value["line_angle"]) % 180,
        **{f"point_{name}": value[f"point_1_{name}"] for name in ("mass", "x", "y")},
        "relative_exposure": value["relative_exposure"],
    }
    states = ["ok" if succeeded else FAILED for succeeded in fit_succeeded(features).tolist()]
    perturbers = ["fitted" if fitted else "below the noise" for fitted in value["perturbers_fitted"].tolist()]
    numbers = {name: [f"{v:.5g}" for v in column.tolist()] for name, column in columns.items()}
    return {"fit": states, **numbers, "perturbers": perturbers}


def summary_features(features: FitFeatures) -> Float[Tensor, "b s"]:
    """Return features (b, N_SUMMARY_FEATURES) that separate the classes, invariant under rotation and image scale.

    The extra variance is not included. It is zero in simulated counts, so a trained network would misclassify images
    that have some.
    """
    value = features.columns()
    gains = [value[f"delta_chi2_points_{k + 1}"] for k in range(N_POINTS)]
    masses = [value[f"point_{k + 1}_mass"] for k in range(N_POINTS)]
    theta_E_squared = value["theta_E"].square().clamp_min(0.01)
    n_pixels, deviance, line = value["n_pixels_fitted"], value["deviance"], value["delta_chi2_line"]
    scatter = (2 * n_pixels).sqrt()
    single = ("delta_chi2_line", "delta_chi2_point_given_line", "evidence_peak", "delta_chi2_point_given_points")
    columns = [
        *(_log(value[name]) for name in single),
        *(_log(gain) for gain in gains),
        *(_log(line - gain) for gain in gains),
        _log((deviance - n_pixels) / scatter),
        _log((deviance - line - n_pixels) / scatter),
        _log((deviance - gains[-1] - n_pixels) / scatter),
        20 * value["line_mass"] / theta_E_squared,
        value["line_length"],
        torch.hypot(value["line_x"] - value["centre_x"], value["line_y"] - value["centre_y"]),
        value["theta_E"],
        torch.hypot(value["gamma1"], value["gamma2"]),
        torch.hypot(value["source_x"], value["source_y"]),
        *(50 * mass / theta_E_squared for mass in masses),
    ]
    return torch.stack(columns, 1)


def ood_features(features: FitFeatures) -> Float[Tensor, "b u"]:
    """Return features whose distribution depends on the population, orientation included.

    They are ln chi2 per pixel of the best hypothesis, shear, source position and `summary_features`.
    """
    chi2 = _smallest_deviance(features) / features.column("n_pixels_fitted")
    smooth = [features.column(name) for name in ("gamma1", "gamma2", "source_x", "source_y")]
    return torch.cat([torch.stack([chi2.clamp_min(1e-3).log(), *smooth], 1), summary_features(features)], 1)


def _smallest_deviance(features: FitFeatures) -> Float[Tensor, " b"]:
    gain = torch.maximum(features.column("delta_chi2_line"), features.column(f"delta_chi2_points_{N_POINTS}"))
    return features.column("deviance") - gain


def _log(value: Tensor) -> Tensor:
    return value.sign() * value.abs().log1p()
